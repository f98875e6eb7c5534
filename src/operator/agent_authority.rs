//! The authority behind the agents' certificates: one per installation, in the operator's own namespace. Its key never leaves that.
//!
//! A Secret with an authority is made once and never changed. When a third of its life is left, the next one follows under a name of its own, so that
//! nothing is ever missing in between.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use nestling_core::api::labels;

use super::call::{CallError, Trouble, call};
use super::pki::{Authority, PkiError, Predecessor, Private};

/// Names of the Secrets, one for each authority after the other. The chart's rights name them, too. They last for 30 years.
pub const SECRETS: [&str; 4] = ["nestling-agent-ca", "nestling-agent-ca-2", "nestling-agent-ca-3", "nestling-agent-ca-4"];

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const PREDECESSOR: &str = "previous-ca.crt";
const SUCCESSOR: &str = "cross.crt";

/// The authority is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The keys.
    #[error("a Secret with the agents' authority: {0}")]
    Pki(#[from] PkiError),
}

/// Reads the newest authority, or makes it if there is none or it is time for the next one. Of several operators that make one, all take the first.
pub async fn load_or_create(client: &Client, namespace: &str, install: &str, now: Timestamp) -> Result<Authority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut newest: Option<Authority> = None;
    for name in SECRETS {
        let authority = if let Some(secret) = call("read the agents' authority", api.get_opt(name)).await? {
            read(&secret)?
        } else {
            let made = match &newest {
                None => Authority::new("nestling-agents", now)?,
                // Another name, so that people can tell them apart.
                Some(before) => before.successor(name, now)?,
            };
            create(&api, name, made, install).await?
        };
        let due = authority.validity()?.is_due(now);
        newest = Some(authority);
        if !due {
            break;
        }
    }
    newest.ok_or(AuthorityError::Pki(PkiError::Unreadable("the agents' authority")))
}

async fn create(api: &Api<Secret>, name: &str, made: Authority, install: &str) -> Result<Authority, AuthorityError> {
    match call("create the agents' authority", api.create(&PostParams::default(), &secret(name, &made, install))).await {
        Ok(_) => Ok(made),
        Err(error) if error.trouble() == Trouble::Conflict => Ok(read(&call("read the agents' authority", api.get(name)).await?)?),
        Err(error) => Err(error.into()),
    }
}

fn secret(name: &str, authority: &Authority, install: &str) -> Secret {
    let pem = |text: &str| ByteString(text.as_bytes().to_vec());
    let mut data = BTreeMap::from([(CERTIFICATE.to_owned(), pem(&authority.certificate)), (KEY.to_owned(), pem(authority.key.expose()))]);
    if let Some(before) = &authority.before {
        data.insert(PREDECESSOR.to_owned(), pem(&before.certificate));
        data.insert(SUCCESSOR.to_owned(), pem(&before.successor));
    }
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([label(labels::INSTALL, install), label(labels::MANAGED_BY, labels::MANAGED_BY_NESTLING)])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        immutable: Some(true),
        ..Secret::default()
    }
}

fn read(secret: &Secret) -> Result<Authority, PkiError> {
    let has = |key: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(key));
    let before = if has(PREDECESSOR) { Some(Predecessor { certificate: text(secret, PREDECESSOR)?, successor: text(secret, SUCCESSOR)? }) } else { None };
    Ok(Authority { certificate: text(secret, CERTIFICATE)?, key: Private::new(text(secret, KEY)?), before })
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
        let stored = serde_json::to_value(secret(SECRETS[0], &theirs, "reed")).unwrap();
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            let path = "/api/v1/namespaces/operators/secrets";
            mock.expect("GET", &format!("{path}/nestling-agent-ca"), Answer::missing()).await;
            mock.expect("POST", path, Answer::refused(409, "AlreadyExists", "exists")).await;
            mock.expect("GET", &format!("{path}/nestling-agent-ca"), Answer::ok(stored)).await;
            mock.done().await;
        });
        let authority = load_or_create(&client, "operators", "reed", Timestamp::now()).await.unwrap();
        assert_eq!(authority.certificate, theirs.certificate);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn the_next_one_follows_in_time_and_both_are_believed() {
        let now = Timestamp::now();
        let begun = now.checked_sub(jiff::SignedDuration::from_hours(7 * 365 * 24)).unwrap();
        let first = Authority::new("first", begun).unwrap();
        let stored = serde_json::to_value(secret(SECRETS[0], &first, "reed")).unwrap();
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            let path = "/api/v1/namespaces/operators/secrets";
            mock.expect("GET", &format!("{path}/nestling-agent-ca"), Answer::ok(stored)).await;
            mock.expect("GET", &format!("{path}/nestling-agent-ca-2"), Answer::missing()).await;
            let sent = mock.expect("POST", path, Answer::ok(serde_json::json!({"metadata": {"name": "nestling-agent-ca-2"}}))).await;
            mock.done().await;
            sent
        });
        let next = load_or_create(&client, "operators", "reed", now).await.unwrap();
        let sent: Secret = serde_json::from_value(server.await.unwrap()).unwrap();
        assert_eq!(sent.metadata.name.as_deref(), Some("nestling-agent-ca-2"));
        let read = read(&sent).unwrap();
        assert_eq!((read.certificate.as_str(), read.before.as_ref().unwrap().certificate.as_str()), (next.certificate.as_str(), first.certificate.as_str()));
        assert!(next.believed().contains(&first.certificate));
    }
}
