//! What the figures of `--fast-path=flow` are to be: `bounds.json`, and whether they are.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{measure::Name, variants::Backend};

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// The kernel's path in the same setting.
    Kernel,
    /// The kernel's path without a single rule, while the fast path has them.
    KernelWithoutRules,
    /// The nodes themselves.
    Native,
    /// `ip -batch` and `bridge -batch`.
    Batch,
    /// Nothing: the figure itself is bounded.
    None,
}

impl Base {
    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelWithoutRules => "kernel, no rules",
            Self::Native => "native host",
            Self::Batch => "ip -batch",
            Self::None => "(itself)",
        }
    }
}

/// A number for each backend.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PerBackend {
    vxlan: f64,
    host_gw: f64,
}

impl PerBackend {
    fn of(self, backend: Backend) -> f64 {
        match backend {
            Backend::Vxlan => self.vxlan,
            Backend::HostGw => self.host_gw,
        }
    }
}

/// The largest value that a figure is to have: as a ratio to its base, or as a difference where events are counted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Bound {
    measure: String,
    figure: String,
    base: Base,
    #[serde(flatten)]
    limit: PerBackend,
    goal: Option<PerBackend>,
}

/// All of them.
pub struct Bounds(Vec<Bound>);

/// How a figure stands to its bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The bound.
    pub limit: f64,
    /// What is hoped for.
    pub goal: Option<f64>,
    /// Whether the median is within the bound.
    pub met: bool,
}

impl Bounds {
    /// Those of this repository.
    pub fn built_in() -> Self {
        Self(serde_json::from_str(include_str!("bounds.json")).expect("a test reads the same file"))
    }

    /// Those of another file.
    ///
    /// # Errors
    /// If it cannot be read, is not such a file, or bounds what is not measured.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("--assert={shown}"))?;
        let bounds: Vec<Bound> =
            serde_json::from_str(&text).with_context(|| format!("--assert={shown}"))?;
        let names = Name::ALL.map(|name| name.measure().name());
        let unknown = bounds
            .iter()
            .find(|bound| !names.contains(&&*bound.measure));
        if let Some(Bound { measure, .. }) = unknown {
            bail!(
                "--assert={shown}: measure = {measure:?}: not one of {}",
                names.join(", ")
            );
        }
        Ok(Self(bounds))
    }

    /// The figures of a measure that are bounded, and by comparison with what.
    pub fn of<'a>(&'a self, measure: &'a str) -> impl Iterator<Item = (&'a str, Base)> {
        let bounds = self.0.iter().filter(move |bound| bound.measure == measure);
        bounds.map(|bound| (bound.figure.as_str(), bound.base))
    }

    /// Whether a figure is bounded by comparison with `base`, and holds.
    pub fn judge(
        &self,
        measure: &str,
        figure: &str,
        base: Base,
        backend: Backend,
        value: f64,
    ) -> Option<Verdict> {
        let bound = self.0.iter().find(|bound| {
            bound.measure == measure && bound.figure == figure && bound.base == base
        })?;
        let limit = bound.limit.of(backend);
        Some(Verdict {
            limit,
            goal: bound.goal.map(|goal| goal.of(backend)),
            met: value <= limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_understood_and_its_measures_exist() {
        let bounds = Bounds::built_in();
        assert!(!bounds.0.is_empty());
        let names: Vec<_> = Name::ALL.map(|name| name.measure().name()).into();
        for bound in &bounds.0 {
            assert!(names.contains(&&*bound.measure), "{bound:?}");
        }
    }

    #[test]
    fn a_file_that_bounds_nothing_known_is_refused() {
        let path = std::env::temp_dir().join(format!("bounds-{}.json", std::process::id()));
        let refused = |text: &str| {
            fs::write(&path, text).expect("a file of its own");
            Bounds::read(&path).err().map(|error| format!("{error:#}"))
        };
        let unknown = r#"[{"measure":"speed","figure":"a","base":"kernel","vxlan":1,"host-gw":1}]"#;
        let errors = [refused(unknown), refused("{"), refused("[]")];
        fs::remove_file(&path).expect("the file");
        assert!(
            errors[0]
                .as_ref()
                .is_some_and(|error| error.contains("\"speed\""))
        );
        assert!(errors[1].is_some() && errors[2].is_none(), "{errors:?}");
    }

    #[test]
    fn a_figure_is_judged_by_its_base_and_backend() {
        let bounds = Bounds::built_in();
        let judge = |base, backend, value| {
            let verdict = bounds.judge("forward", "UDP packet", base, backend, value);
            verdict.map(|verdict| verdict.met)
        };
        assert_eq!(judge(Base::Kernel, Backend::Vxlan, 0.12), Some(true));
        assert_eq!(judge(Base::Kernel, Backend::Vxlan, 0.13), Some(false));
        assert_eq!(judge(Base::Kernel, Backend::HostGw, 0.13), Some(true));
        assert_eq!(judge(Base::Native, Backend::Vxlan, 0.1), None);
    }
}
