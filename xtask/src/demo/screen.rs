//! The terminal while the demo is live: alternate screen, no echo, no cursor; as before on every way out.
//!
//! What must be put back is held in one place, so that the end of the screen, a panic and a signal can each do it, and
//! nothing is drawn afterwards.

use std::{
    io::{IsTerminal, Read, Write, stdin, stdout},
    sync::{Mutex, Once},
    time::Duration,
};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

use crate::demo::style::Line;

/// What to put back; none while the screen is not up. The input's settings are absent if it is no terminal.
static BEFORE: Mutex<Option<Option<Termios>>> = Mutex::new(None);

/// Alternate screen on, cursor off (xterm control sequences).
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
/// How long a read waits for a key, in tenths of a second (`termios(3)`, VTIME).
const KEY_WAIT: u8 = 1;
/// A special character that no key sends (`_POSIX_VDISABLE`).
const DISABLED: u8 = 0;

/// The size of the terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// The live screen; the terminal is as before when it goes.
pub(super) struct Screen(());

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> std::io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // Else the message would go with the alternate screen.
                restore();
                report(panic);
            }));
        });
        let mut before = lock();
        let input = if stdin().is_terminal() {
            Some(tcgetattr(stdin())?)
        } else {
            None
        };
        if let Some(input) = &input {
            let mut modes = input.clone();
            // Signals stay: Ctrl-C ends the demo. Suspending would leave the shell on the alternate screen.
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            modes.special_codes[SpecialCodeIndex::VSUSP] = DISABLED;
            modes.special_codes[SpecialCodeIndex::VMIN] = 0;
            modes.special_codes[SpecialCodeIndex::VTIME] = KEY_WAIT;
            tcsetattr(stdin(), OptionalActions::Flush, &modes)?;
        }
        *before = Some(input);
        write(OPEN);
        Ok(Self(()))
    }

    /// Draws the lines that `content` makes for the terminal's present size.
    pub(super) fn draw(&self, content: impl FnOnce(Size) -> Vec<Line>) {
        let size = size();
        let lines: Vec<_> = content(size)
            .iter()
            .take(size.rows)
            .map(|line| line.ansi(size.columns) + "\x1b[K")
            .collect();
        let before = lock();
        if before.is_some() {
            // Over the old content, without clearing first: no flicker.
            write(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")));
        }
    }

    /// Waits for a key, for a tenth of a second at most: the key in lower case.
    pub(super) fn key(&self) -> Option<char> {
        const WAIT: Duration = Duration::from_millis(100);
        if !stdin().is_terminal() {
            std::thread::sleep(WAIT);
            return None;
        }
        let mut key = [0];
        match stdin().read(&mut key) {
            Ok(1) => Some(char::from(key[0]).to_ascii_lowercase()),
            Ok(_) => None,
            // The terminal has gone: the hang-up signal is on its way.
            Err(_) => {
                std::thread::sleep(WAIT);
                None
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if it was taken over.
pub(super) fn restore() {
    if let Some(input) = lock().take() {
        write(CLOSE);
        if let Some(input) = input {
            // There is nobody to tell if the terminal has gone.
            let _ = tcsetattr(stdin(), OptionalActions::Flush, &input);
        }
    }
}

fn size() -> Size {
    /// For terminals that do not know: the size of a VT100.
    const USUAL: Size = Size {
        columns: 80,
        rows: 24,
    };
    match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
        },
        _ => USUAL,
    }
}

fn write(text: &str) {
    let mut output = stdout().lock();
    // A terminal that has gone is noticed by the hang-up signal.
    let _ = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
}

fn lock() -> std::sync::MutexGuard<'static, Option<Option<Termios>>> {
    BEFORE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
