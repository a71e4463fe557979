//! The files of TLS towards etcd, and when they change.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::lease::changes::Changes;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{option} = {}: {source}", path.display())]
    File {
        /// The option.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{option} = {}: no {what} in PEM format in it", path.display())]
    Content {
        /// The option.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// One without the other.
    #[error("--etcd-certfile and --etcd-keyfile belong together: {missing} is missing")]
    Half {
        /// The option that was not given.
        missing: &'static str,
    },
}

/// Files of the options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// `--etcd-certfile` and `--etcd-keyfile`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `--etcd-cafile`; without it the system's authorities count.
    pub authority: Option<PathBuf>,
}

impl TlsFiles {
    /// From the options, of which an empty one is absent.
    ///
    /// # Errors
    /// [`Error::Half`]. Upstream then goes without both, and without the authority.
    pub fn new(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, Error> {
        let given = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let identity = match (given(certificate), given(key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(Error::Half {
                    missing: "--etcd-keyfile",
                });
            }
            (None, Some(_)) => {
                return Err(Error::Half {
                    missing: "--etcd-certfile",
                });
            }
        };
        Ok(Self {
            identity,
            authority: given(authority),
        })
    }

    /// Whether no file was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or holds something else.
    pub fn load(&self) -> Result<TlsOptions, Error> {
        let mut tls = TlsOptions::new();
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(
                read(
                    "--etcd-certfile",
                    certificate,
                    "certificate",
                    "CERTIFICATE-----",
                )?,
                read("--etcd-keyfile", key, "private key", "PRIVATE KEY-----")?,
            ));
        }
        Ok(match &self.authority {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(
                "--etcd-cafile",
                path,
                "certificate",
                "CERTIFICATE-----",
            )?)),
            None => tls.with_enabled_roots(),
        })
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = self.identity.iter();
        identity
            .flat_map(|(certificate, key)| [certificate, key])
            .chain(&self.authority)
    }

    /// Says so whenever the files have changed, see [`Changes::of`].
    pub fn changes(&self) -> Changes {
        Changes::of(self.paths().cloned().collect())
    }
}

fn read(
    option: &'static str,
    path: &Path,
    what: &'static str,
    mark: &str,
) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::File {
        option,
        path: path.to_owned(),
        source,
    })?;
    let marked = bytes
        .windows(mark.len())
        .any(|window| window == mark.as_bytes());
    if !marked {
        return Err(Error::Content {
            option,
            path: path.to_owned(),
            what,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(certificate: &str, key: &str, authority: &str) -> Result<TlsFiles, String> {
        TlsFiles::new(certificate.as_ref(), key.as_ref(), authority.as_ref())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn certificate_and_key_come_together_and_the_authority_alone() {
        assert!(files("", "", "").unwrap().is_empty());
        let alone = files("", "", "/ca").unwrap();
        assert_eq!((alone.is_empty(), alone.identity), (false, None));
        assert!(files("/c", "/k", "").unwrap().authority.is_none());
        for (certificate, key, missing) in [
            ("/c", "", "--etcd-keyfile is"),
            ("", "/k", "--etcd-certfile is"),
        ] {
            let error = files(certificate, key, "/ca").unwrap_err();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let directory = std::env::temp_dir().join(format!("flannel-tls-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let garbage = directory.join("garbage");
        fs::write(&garbage, "garbage").unwrap();
        let garbage = garbage.to_str().unwrap();
        let failures = [
            files("", "", "/no/such/ca"),
            files("", "", garbage),
            files(garbage, "/no/such/key", ""),
        ]
        .map(|files| files.unwrap().load().unwrap_err().to_string());
        fs::remove_dir_all(&directory).unwrap();
        for (failure, parts) in failures.iter().zip([
            ["--etcd-cafile = /no/such/ca", "No such file"],
            ["--etcd-cafile", "no certificate in PEM format"],
            ["--etcd-certfile", "no certificate in PEM format"],
        ]) {
            assert!(parts.iter().all(|part| failure.contains(part)), "{failure}");
        }
    }
}
