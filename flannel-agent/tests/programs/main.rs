//! The BPF programs, run by the kernel (`BPF_PROG_TEST_RUN`) on every named packet: verdict, bytes and counters.
//!
//! Needs root and a BPF object: the one that `FLANNEL_EBPF_OBJECT` names, such as another toolchain's, or else the one
//! that was built in. `--bench` measures instead of testing.
//!
//! What a test run cannot show is where a redirected packet goes: that is known to the host tests of the decisions, and
//! to tests with real interfaces.

mod random;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flannel_agent::fastpath::object;
use flannel_common::outcome::{Hook, Outcome, slot};
use flannel_common::testing::fixtures::{self, Expected, Fixture, ProgramRun};
use lab::programs::{
    self, Kernel, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, XDP_DROP, XDP_PASS,
};
use lab::signals;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Why the hooks that learn cannot be tried on older kernels.
const NO_ORIGIN: &str = "this kernel's test runs cannot say by which interface a packet came in";

/// Why the rows that encapsulate are no proof of it before kernel 5.13.
const NO_ENCAPSULATION: &str =
    "this kernel cannot encapsulate in BPF: the packet was left to it unchanged, as it must be";

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let arguments = Arguments::from_args();
    let kernel = start();
    let loaded = kernel.clone();
    let mut trials = vec![
        Trial::ignorable_test("programs_load", move || loads(&loaded)),
        trial(
            "names_are_those_of_the_object".into(),
            &kernel,
            names_are_those_of_the_object,
        ),
    ];
    for fixture in fixtures::all() {
        let name = format!("{}: {}", fixture.hook.name(), fixture.name);
        trials.push(match fixture.program {
            ProgramRun::Impossible(reason) => {
                Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)))
            }
            _ => completed_trial(name, &kernel, move |kernel| {
                if lacks_origin(kernel, fixture.hook) {
                    return Ok(Completion::ignored_with(NO_ORIGIN));
                }
                ends_as_expected(kernel, &fixture)?;
                Ok(if is_refused(kernel, &fixture) {
                    Completion::ignored_with(NO_ENCAPSULATION)
                } else {
                    Completion::Completed
                })
            }),
        });
    }
    for hook in Hook::ALL {
        let name = format!("{}: random changes end as on the host", hook.name());
        trials.push(completed_trial(name, &kernel, move |kernel| {
            if lacks_origin(kernel, hook) {
                return Ok(Completion::ignored_with(NO_ORIGIN));
            }
            random::ends_as_on_the_host(kernel, hook)?;
            Ok(Completion::Completed)
        }));
    }
    // The trials go with the run; this is the last handle, which takes the namespace with it.
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(kernel);
    conclusion.exit_code()
}

/// A test that needs the loaded programs.
fn trial(
    name: String,
    kernel: &Shared,
    test: impl FnOnce(&mut Kernel) -> Result<(), String> + Send + 'static,
) -> Trial {
    completed_trial(name, kernel, |kernel| {
        test(kernel).map(|()| Completion::Completed)
    })
}

/// As [`trial`], for one that may find that this kernel lacks what it is about.
fn completed_trial(
    name: String,
    kernel: &Shared,
    test: impl FnOnce(&mut Kernel) -> Result<Completion, String> + Send + 'static,
) -> Trial {
    let kernel = kernel.clone();
    Trial::ignorable_test(name, move || match kernel {
        Ok(kernel) => Ok(test(
            &mut *kernel.lock().map_err(|error| error.to_string())?,
        )?),
        Err(NotRun::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
        Err(NotRun::Failed(_)) => Ok(Completion::ignored_with("the programs do not load")),
    })
}

/// Why nothing can be run.
#[derive(Clone, Debug)]
enum NotRun {
    /// The build or the user is not made for it.
    Skipped(&'static str),
    /// It should have worked.
    Failed(String),
}

type Shared = Result<Arc<Mutex<Kernel>>, NotRun>;

/// Loads the programs once for all trials.
fn start() -> Shared {
    if !rustix::process::geteuid().is_root() {
        return Err(NotRun::Skipped("BPF programs need root"));
    }
    let object = match programs::bytes() {
        Ok(Some(object)) => object,
        Ok(None) => {
            return Err(NotRun::Skipped(
                "built without FLANNEL_EBPF_OBJECT, so without BPF programs",
            ));
        }
        Err(error) => return Err(NotRun::Failed(format!("{error:#}"))),
    };
    match Kernel::load(&object) {
        Ok(kernel) => Ok(Arc::new(Mutex::new(kernel))),
        Err(error) => Err(NotRun::Failed(format!("{error:#}"))),
    }
}

/// Whether every program of the object passed the verifier. The one test that says why they do not.
fn loads(kernel: &Shared) -> Result<Completion, Failed> {
    match kernel {
        Ok(_) => Ok(Completion::Completed),
        Err(NotRun::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
        Err(NotRun::Failed(reason)) => Err(reason.into()),
    }
}

/// What the agent calls programs and maps against what the object does.
fn names_are_those_of_the_object(kernel: &mut Kernel) -> Result<(), String> {
    let programs = kernel.programs();
    for hook in Hook::ALL {
        if !programs.contains(hook.name()) {
            return Err(format!("no program {} among {programs:?}", hook.name()));
        }
    }
    let pinned: BTreeSet<String> = object::MAPS.map(str::to_owned).into();
    if pinned != *kernel.maps() {
        return Err(format!(
            "the agent pins {pinned:?}, the object has {:?}",
            kernel.maps()
        ));
    }
    Ok(())
}

/// Whether the hook looks at what this kernel's test runs cannot set.
fn lacks_origin(kernel: &Kernel, hook: Hook) -> bool {
    Hook::ATTESTING.contains(&hook) && !kernel.sets_origin()
}

/// Whether the packet is to be encapsulated and this kernel refuses that.
fn is_refused(kernel: &Kernel, fixture: &Fixture) -> bool {
    fixture.encapsulates() && !kernel.encapsulates()
}

fn ends_as_expected(kernel: &mut Kernel, fixture: &Fixture) -> Result<(), String> {
    let outcome = match fixture.program {
        ProgramRun::HelperRefuses(_) => Outcome::Helper,
        _ if is_refused(kernel, fixture) => Outcome::Helper,
        _ => fixture.outcome(),
    };
    let verdict = match fixture.expected {
        Expected::Dropped(_) if fixture.hook == Hook::NicXdp => XDP_DROP,
        _ if fixture.hook == Hook::NicXdp => XDP_PASS,
        Expected::Dropped(_) => TC_ACT_SHOT,
        _ if outcome == Outcome::Fast => TC_ACT_REDIRECT,
        _ => TC_ACT_UNSPEC,
    };
    kernel
        .fill(&fixture.tables)
        .map_err(|error| format!("{error:#}"))?;
    let before = kernel.counters().map_err(|error| format!("{error:#}"))?;
    let ran = kernel
        .run(fixture, 1)
        .map_err(|error| format!("{error:#}"))?;
    let after = kernel.counters().map_err(|error| format!("{error:#}"))?;
    let counted: Vec<_> = after
        .iter()
        .zip(&before)
        .enumerate()
        .filter(|(_, (after, before))| after != before)
        .map(|(slot, (after, before))| (slot, after - before))
        .collect();
    let expected = vec![(slot(fixture.hook, outcome) as usize, 1)];
    if counted != expected {
        return Err(format!(
            "counted {}, not {}",
            named(&counted),
            named(&expected)
        ));
    }
    if ran.verdict != verdict {
        return Err(format!("verdict {} instead of {verdict}", ran.verdict));
    }
    if !ran.mark_is_clean {
        return Err("the packet's mark is not as it should be".into());
    }
    if matches!(outcome, Outcome::Fast | Outcome::Decapsulated) {
        fixture.check_frame(&ran.frame)
    } else if ran.frame == fixture.frame {
        Ok(())
    } else {
        Err(format!(
            "declined, but changed: {:02x?} became {:02x?}",
            fixture.frame, ran.frame
        ))
    }
}

/// Counter slots by what they count.
fn named(counted: &[(usize, u64)]) -> String {
    let name = |wanted: usize| {
        Hook::ALL
            .into_iter()
            .flat_map(|hook| Outcome::ALL.iter().map(move |outcome| (hook, *outcome)))
            .find(|(hook, outcome)| slot(*hook, *outcome) as usize == wanted)
            .map_or("nothing".into(), |(hook, outcome)| {
                format!("{} {}", hook.name(), outcome.name())
            })
    };
    let counted: Vec<_> = counted
        .iter()
        .map(|(slot, by)| format!("{} by {by}", name(*slot)))
        .collect();
    format!("{counted:?}")
}
