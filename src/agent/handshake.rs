//! What a server shows of itself in a TLS handshake.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Time for one handshake with a server on the same machine.
const LIMIT: Duration = Duration::from_secs(5);

/// The certificate (DER) that a server shows for a name, if this authority (a file) vouches for it.
///
/// # Errors
/// Why there is none, for people.
pub async fn shown(address: SocketAddr, name: &str, authority: &Path) -> Result<Vec<u8>, String> {
    let problem = |error: &dyn std::fmt::Display| format!("{address} as {name}: {error}");
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(authority).map_err(|error| problem(&error))?;
    roots.add(authority).map_err(|error| problem(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| problem(&error))?;
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let server = ServerName::try_from(name.to_owned()).map_err(|error| problem(&error))?;
    let shake = async {
        let stream = TcpStream::connect(address).await?;
        connector.connect(server, stream).await
    };
    let stream = timeout(LIMIT, shake).await.map_err(|_| problem(&"no handshake in time"))?.map_err(|error| problem(&error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).ok_or_else(|| problem(&"no certificate"))?;
    Ok(certificate.to_vec())
}
