//! The authority behind the agents' certificates: one per installation, in the operator's own namespace. Its key never leaves that.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use nestling_core::api::labels;

use super::call::{CallError, Trouble, call};
use super::pki::{Authority, PkiError, Private};

/// Name of the Secret.
pub const SECRET: &str = "nestling-agent-ca";

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// The authority is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The keys.
    #[error("Secret {SECRET}: {0}")]
    Pki(#[from] PkiError),
}

/// Reads the authority, or makes it if there is none. Of several operators that make one, all take the first.
pub async fn load_or_create(client: &Client, namespace: &str, install: &str) -> Result<Authority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = call("read the agents' authority", api.get_opt(SECRET)).await? {
        return Ok(read(&secret)?);
    }
    let authority = Authority::new("nestling-agents", Timestamp::now())?;
    match call("create the agents' authority", api.create(&PostParams::default(), &secret(&authority, install))).await {
        Ok(_) => Ok(authority),
        Err(error) if error.trouble() == Trouble::Conflict => Ok(read(&call("read the agents' authority", api.get(SECRET)).await?)?),
        Err(error) => Err(error.into()),
    }
}

fn secret(authority: &Authority, install: &str) -> Secret {
    let pem = |text: &str| ByteString(text.as_bytes().to_vec());
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some(BTreeMap::from([label(labels::INSTALL, install), label(labels::MANAGED_BY, labels::MANAGED_BY_NESTLING)])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(CERTIFICATE.to_owned(), pem(&authority.certificate)), (KEY.to_owned(), pem(authority.key.expose()))])),
        immutable: Some(true),
        ..Secret::default()
    }
}

fn read(secret: &Secret) -> Result<Authority, PkiError> {
    Ok(Authority { certificate: text(secret, CERTIFICATE)?, key: Private::new(text(secret, KEY)?) })
}

/// One key of a Secret as text.
pub fn text(secret: &Secret, key: &'static str) -> Result<String, PkiError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(PkiError::Unreadable(key))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| PkiError::Unreadable(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::mock::{Answer, Mock};

    #[tokio::test]
    async fn the_first_one_made_is_everybodys() {
        let theirs = Authority::new("first", Timestamp::now()).unwrap();
        let stored = serde_json::to_value(secret(&theirs, "reed")).unwrap();
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            let path = "/api/v1/namespaces/operators/secrets";
            mock.expect("GET", &format!("{path}/nestling-agent-ca"), Answer::missing()).await;
            mock.expect("POST", path, Answer::refused(409, "AlreadyExists", "exists")).await;
            mock.expect("GET", &format!("{path}/nestling-agent-ca"), Answer::ok(stored)).await;
            mock.done().await;
        });
        let authority = load_or_create(&client, "operators", "reed").await.unwrap();
        assert_eq!(authority.certificate, theirs.certificate);
        server.await.unwrap();
    }
}
