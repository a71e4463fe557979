//! The API server over TLS: who trusts its authority reaches it, with a token that it knows.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use lab::{
    Cluster, ClusterConfig, LeaseStore, NodeConfig, Result, error::IoContext,
    kube::mock::ApiServer, process,
};
use serde_json::Value;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::cluster;

/// Whether there is no program that makes certificates.
pub(crate) fn lacks_openssl() -> bool {
    let missing = process::run(None, "openssl", &["version"]).is_err();
    if missing {
        println!("skipped: leases_in_the_kubernetes_api_with_tls: openssl is not installed");
    }
    missing
}

pub(crate) fn over_tls() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig {
        leases: LeaseStore::SecureApiServer,
        ..cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 0)
    })?;
    let server = cluster.api_server();
    let config: Value = serde_json::from_str(&server.kubeconfig("token-of-n2")).expect("JSON");
    assert_eq!(config["clusters"][0]["cluster"]["server"], server.url());
    let token = config["users"][0]["user"]["token"].as_str();
    let answer = get(&cluster, server, server.authority(), token)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains(r#""kind":"NodeList""#), "{answer}");
    let answer = get(&cluster, server, server.authority(), Some("another"))?;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let error = get(&cluster, server, None, token).expect_err("nobody vouches for it");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    Ok(())
}

/// Asks for all nodes, from the first node's namespace.
fn get(
    cluster: &Cluster,
    server: &ApiServer,
    authority: Option<&str>,
    token: Option<&str>,
) -> Result<String> {
    let mut trusted = RootCertStore::empty();
    if let Some(pem) = authority {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM");
        trusted.add(certificate).expect("it is an authority's");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has all of them")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let url = server.url();
    let address: SocketAddr = url
        .trim_start_matches("https://")
        .parse()
        .expect("an address");
    let client = ClientConnection::new(Arc::new(config), address.ip().into()).expect("a client");
    let stream = cluster
        .node(1)
        .netns()
        .run(|| TcpStream::connect(address).context("connect to", address))??;
    let mut stream = StreamOwned::new(client, stream);
    let request = format!(
        "GET /api/v1/nodes HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        token.unwrap_or_default()
    );
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).context("ask", &url)?;
    match stream.read_to_end(&mut answer) {
        // The server goes without a farewell in TLS.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(()),
    }
    .context("read from", &url)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
