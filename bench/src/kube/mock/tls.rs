//! The server's certificate and the authority that vouches for it, made by `openssl` at each start.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::{
    error::{Error, IoContext, Result},
    process,
};

/// How to speak TLS, and what clients must know for it.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// The authority's certificate, PEM.
    pub(super) authority: String,
}

impl Tls {
    /// Makes key and certificate for a server with this address, in an empty directory.
    pub(super) fn new(directory: &Path, address: IpAddr) -> Result<Self> {
        let files = Files(directory.to_owned());
        files.make(address)?;
        let bad = |what: &str, error: &dyn ToString| Error::Parse {
            what: what.to_owned(),
            reason: error.to_string(),
            text: directory.display().to_string(),
        };
        let certificate = CertificateDer::from_pem_file(files.path("server.pem"))
            .map_err(|error| bad("certificate", &error))?;
        let key = PrivateKeyDer::from_pem_file(files.path("server.key"))
            .map_err(|error| bad("key", &error))?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate], key)
            })
            .map_err(|error| bad("TLS configuration", &error))?;
        let path = files.path("ca.pem");
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            authority: fs::read_to_string(&path).context("read", path.display())?,
        })
    }
}

struct Files(PathBuf);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn make(&self, address: IpAddr) -> Result<()> {
        let settings = format!(
            "[req]\ndistinguished_name=name\nprompt=no\n[name]\nCN=lab\n\
             [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
             subjectKeyIdentifier=hash\n\
             [leaf]\nsubjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\n"
        );
        let path = self.path("settings");
        fs::write(&path, settings).context("write", path.display())?;
        const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        self.openssl(&format!(
            "req -x509 -config settings -extensions authority -subj /CN=authority -days 2 {KEY} \
             -keyout ca.key -out ca.pem"
        ))?;
        self.openssl(&format!(
            "req -config settings -subj /CN=kube-apiserver {KEY} -keyout server.key -out server.csr"
        ))?;
        self.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile settings -extensions leaf -out server.pem",
        )
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command
            .current_dir(&self.0)
            .args(arguments.split_whitespace());
        process::run_command(None, &mut command, "").map(drop)
    }
}
