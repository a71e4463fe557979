//! Bodies of answers: whole, cut in the middle, or a stream that lasts.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// How many parts of a stream wait for a slow reader.
const BUFFER: usize = 16;

/// The connection ends although the body does not.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut on purpose")]
pub(super) struct Cut;

/// A part of a stream, or its violent end.
pub(super) type Part = Result<Bytes, Cut>;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Content {
    Whole(Option<Bytes>),
    /// Ends when its sender goes.
    Stream(mpsc::Receiver<Part>),
    /// The next that is heard of it is the cut.
    Cutting,
}

impl Content {
    /// A stream and where its parts are put in.
    pub(super) fn stream() -> (mpsc::Sender<Part>, Self) {
        let (sender, receiver) = mpsc::channel(BUFFER);
        (sender, Self::Stream(receiver))
    }

    /// The first half; then the connection ends.
    pub(super) fn half(whole: &Bytes) -> Self {
        let (sender, content) = Self::stream();
        for part in [Ok(half(whole)), Err(Cut)] {
            sender.try_send(part).expect("there is room for two");
        }
        content
    }
}

/// The first half of some text.
pub(super) fn half(whole: &Bytes) -> Bytes {
    whole.slice(..whole.len() / 2)
}

impl Body for Content {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let content = self.get_mut();
        let receiver = match content {
            Self::Whole(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Cutting => return Poll::Ready(Some(Err(Cut))),
            Self::Stream(receiver) => receiver,
        };
        match receiver.poll_recv(context) {
            Poll::Ready(Some(Err(Cut))) => {
                // Not at once: hyper would throw away what it has not written yet.
                *content = Self::Cutting;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            part => part.map(|part| part.map(|part| part.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) | Self::Cutting => SizeHint::default(),
        }
    }
}
