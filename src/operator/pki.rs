//! Keys and certificates. All of them are made here and nowhere else; none is ever printed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use nestling_core::plan::names::Identity;
use nestling_core::plan::wire::{OPERATOR_NAME, keys};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Life of an authority, and of the agent's certificate, which is not renewed for now.
const LONG: Duration = Duration::from_hours(10 * 365 * 24);

/// Certificates begin to hold a little earlier, because clocks differ.
const EARLIER: Duration = Duration::from_mins(5);

/// Keys or certificates that cannot be made or read. Says nothing of their content.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refuses.
    #[error("failed to make {what}: {source}")]
    Certificate {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
    /// Something that should hold a key does not.
    #[error("{0} is missing or cannot be read")]
    Unreadable(&'static str),
}

/// Text that is a secret.
#[derive(Clone, Eq, PartialEq)]
pub struct Private(String);

impl Private {
    /// Takes a secret in.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(private)")
    }
}

/// A certificate and its key, PEM both.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: Private,
    /// When it ends.
    pub expires: Timestamp,
}

/// An authority that issues certificates.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM (PKCS #8).
    pub key: Private,
}

/// What a certificate is for.
pub struct Subject<'a> {
    /// Common name.
    pub common_name: &'a str,
    /// Organization: for the API server, the user's group.
    pub organization: Option<&'a str>,
    /// DNS names.
    pub dns_names: &'a [String],
    /// Whether its bearer asks or answers.
    pub usage: ExtendedKeyUsagePurpose,
}

impl Authority {
    /// A new authority.
    pub fn new(common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let failed = |source| PkiError::Certificate { what: "an authority", source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, LONG);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate: certificate.pem(), key: Private::new(key.serialize_pem()) })
    }

    /// Issues a certificate.
    pub fn issue(&self, subject: &Subject<'_>, now: Timestamp, life: Duration) -> Result<Issued, PkiError> {
        let failed = |source| PkiError::Certificate { what: "a certificate", source };
        let authority_key = KeyPair::from_pem(self.key.expose()).map_err(|_| PkiError::Unreadable("the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, authority_key).map_err(|_| PkiError::Unreadable("the authority's certificate"))?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(subject.dns_names.to_vec()).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = subject.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, subject.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![subject.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        let expires = set_validity(&mut params, now, life);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Issued { certificate: certificate.pem(), key: Private::new(key.serialize_pem()), expires })
    }
}

/// Sets both ends of a certificate's life and returns the second. Whole seconds, as certificates and the API have them.
fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) -> Timestamp {
    let now = u64::try_from(now.as_second()).unwrap_or(0);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let end = now + life.as_secs();
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(EARLIER.as_secs()));
    params.not_after = epoch + Duration::from_secs(end);
    i64::try_from(end).ok().and_then(|end| Timestamp::from_second(end).ok()).unwrap_or(Timestamp::MAX)
}

/// The operator's own certificate towards agents. It lives in memory only.
pub fn operator_certificate(agents: &Authority, now: Timestamp) -> Result<Issued, PkiError> {
    let names = [OPERATOR_NAME.to_owned()];
    let subject = Subject { common_name: OPERATOR_NAME, organization: None, dns_names: &names, usage: ExtendedKeyUsagePurpose::ClientAuth };
    agents.issue(&subject, now, LONG)
}

/// Everything that the keys Secret of one cluster holds.
pub fn cluster_keys(identity: &Identity, agents: &Authority, now: Timestamp) -> Result<BTreeMap<String, ByteString>, PkiError> {
    // The names that kubeadm gives them.
    let cluster = Authority::new("kubernetes", now)?;
    let front_proxy = Authority::new("front-proxy-ca", now)?;
    let etcd = Authority::new("etcd-ca", now)?;
    let accounts = KeyPair::generate().map_err(|source| PkiError::Certificate { what: "the service accounts' key", source })?;
    let name = identity.agent_server_name();
    let names = [name.clone()];
    let subject = Subject { common_name: "agent.nestling", organization: None, dns_names: &names, usage: ExtendedKeyUsagePurpose::ServerAuth };
    let agent = agents.issue(&subject, now, LONG)?;
    let all = [
        ("ca.crt", cluster.certificate),
        ("ca.key", cluster.key.0),
        ("front-proxy-ca.crt", front_proxy.certificate),
        ("front-proxy-ca.key", front_proxy.key.0),
        ("etcd-ca.crt", etcd.certificate),
        ("etcd-ca.key", etcd.key.0),
        ("sa.key", accounts.serialize_pem()),
        ("sa.pub", accounts.public_key_pem()),
        (keys::BOOTSTRAP_TOKEN, bootstrap_token()?),
        (keys::AGENT_CERTIFICATE, agent.certificate),
        (keys::AGENT_KEY, agent.key.0),
        (keys::AGENT_AUTHORITY, agents.certificate.clone()),
    ];
    Ok(all.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect())
}

/// A token as kubeadm wants it: six and sixteen characters.
fn bootstrap_token() -> Result<String, PkiError> {
    Ok(format!("{}.{}", random_text(6)?, random_text(16)?))
}

fn random_text(length: usize) -> Result<String, PkiError> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 36 in a byte: larger ones would make some characters likelier.
    const EVEN: u8 = 252;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0_u8; 32];
        OsRng.try_fill_bytes(&mut bytes).map_err(|_| PkiError::Random)?;
        let missing = length - text.len();
        text.extend(bytes.iter().filter(|byte| **byte < EVEN).take(missing).map(|byte| char::from(ALPHABET[usize::from(byte % 36)])));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::*;

    fn identity() -> Identity {
        Identity { namespace: "marsh".into(), name: "crane".into(), uid: "0b5c5c4e-0000-4000-8000-000000000001".into() }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn text(keys: &BTreeMap<String, ByteString>, key: &str) -> String {
        String::from_utf8(keys[key].0.clone()).unwrap()
    }

    #[test]
    fn the_secret_holds_every_file_that_the_agent_expects() {
        let agents = Authority::new("agents", now()).unwrap();
        let made = cluster_keys(&identity(), &agents, now()).unwrap();
        let expected =
            keys::CLUSTER.iter().map(|(key, _)| *key).chain([keys::BOOTSTRAP_TOKEN, keys::AGENT_CERTIFICATE, keys::AGENT_KEY, keys::AGENT_AUTHORITY]);
        for key in expected {
            assert!(made.contains_key(key), "{key}");
        }
        assert_eq!(made.len(), 12);
        assert!(text(&made, "sa.key").starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(text(&made, "sa.pub").starts_with("-----BEGIN PUBLIC KEY-----"));
        let token = text(&made, keys::BOOTSTRAP_TOKEN);
        let (id, secret) = token.split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (6, 16));
        assert!(token.chars().all(|c| c == '.' || c.is_ascii_lowercase() || c.is_ascii_digit()));
        let again = cluster_keys(&identity(), &agents, now()).unwrap();
        assert!(keys::CLUSTER.iter().all(|(key, _)| made[*key] != again[*key]), "every cluster has keys of its own");
    }

    #[test]
    fn authorities_are_as_kubeadm_makes_them() {
        let agents = Authority::new("agents", now()).unwrap();
        let made = cluster_keys(&identity(), &agents, now()).unwrap();
        for (key, name) in [("ca.crt", "kubernetes"), ("front-proxy-ca.crt", "front-proxy-ca"), ("etcd-ca.crt", "etcd-ca")] {
            let pem = text(&made, key);
            let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), name);
            assert!(certificate.is_ca());
            let usage = certificate.key_usage().unwrap().unwrap().value;
            assert!(usage.key_cert_sign() && usage.crl_sign() && usage.digital_signature());
            let days = (certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp()) / 86_400;
            assert_eq!(days, 3650);
        }
    }

    #[test]
    fn the_agents_certificate_is_for_its_cluster_alone_and_cannot_ask() {
        let agents = Authority::new("agents", now()).unwrap();
        let made = cluster_keys(&identity(), &agents, now()).unwrap();
        let pem = text(&made, keys::AGENT_CERTIFICATE);
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names, &[GeneralName::DNSName("0b5c5c4e-0000-4000-8000-000000000001.agent.nestling")]);
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        assert!(!text(&made, keys::AGENT_AUTHORITY).contains("PRIVATE"), "the authority's key never enters the pod");
    }

    #[test]
    fn secrets_are_not_printed() {
        let authority = Authority::new("agents", now()).unwrap();
        let issued = operator_certificate(&authority, now()).unwrap();
        let printed = format!("{authority:?} {issued:?}");
        assert!(!printed.contains("PRIVATE KEY"), "{printed}");
    }
}
