//! Keys and certificates. All of them are made here and nowhere else; none is ever printed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use nestling_core::plan::certificates::{AUTHORITY_LIFE, CHANNEL_LIFE, Validity};
use nestling_core::plan::names::Identity;
use nestling_core::plan::situation::later;
use nestling_core::plan::wire::{OPERATOR_NAME, keys};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey};

use crate::x509::validity;

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
    /// From when until when it holds.
    pub validity: Validity,
}

/// An authority that issues certificates.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM (PKCS #8).
    pub key: Private,
    /// The authority before it, which is to be believed as long as it holds.
    pub before: Option<Predecessor>,
}

/// The authority that another one has followed. Its key is no longer needed.
#[derive(Clone, Debug)]
pub struct Predecessor {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its certificate for the key of its successor, PEM: for those who know only the predecessor.
    pub successor: String,
}

/// What a certificate is for.
pub struct Subject<'a> {
    /// Common name.
    pub common_name: &'a str,
    /// Organizations: for the API server, the user's groups.
    pub organizations: &'a [String],
    /// DNS names.
    pub dns_names: &'a [String],
    /// Whether its bearer asks or answers.
    pub usage: ExtendedKeyUsagePurpose,
}

impl Authority {
    /// A new authority.
    pub fn new(common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(no_authority)?;
        let certificate = authority_params(common_name, now, later(now, AUTHORITY_LIFE)).self_signed(&key).map_err(no_authority)?;
        Ok(Self { certificate: certificate.pem(), key: Private::new(key.serialize_pem()), before: None })
    }

    /// A new authority in the place of this one. Who believes this one believes the new one as well, and the other way round, until this one ends.
    pub fn successor(&self, common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(no_authority)?;
        let certificate = authority_params(common_name, now, later(now, AUTHORITY_LIFE)).self_signed(&key).map_err(no_authority)?;
        let crossed = authority_params(common_name, now, self.validity()?.ends).signed_by(&key, &self.issuer()?).map_err(no_authority)?;
        let before = Predecessor { certificate: self.certificate.clone(), successor: crossed.pem() };
        Ok(Self { certificate: certificate.pem(), key: Private::new(key.serialize_pem()), before: Some(before) })
    }

    /// From when until when it holds.
    pub fn validity(&self) -> Result<Validity, PkiError> {
        validity(&self.certificate).ok_or(PkiError::Unreadable("the authority's certificate"))
    }

    /// Every authority that is to be believed, PEM.
    pub fn believed(&self) -> String {
        self.certificate.clone() + self.before.as_ref().map_or("", |before| &before.certificate)
    }

    fn issuer(&self) -> Result<Issuer<'_, KeyPair>, PkiError> {
        let key = KeyPair::from_pem(self.key.expose()).map_err(|_| PkiError::Unreadable("the authority's key"))?;
        Issuer::from_ca_cert_pem(&self.certificate, key).map_err(|_| PkiError::Unreadable("the authority's certificate"))
    }

    /// The life of a certificate that it issues now: it ends with its authority at the latest.
    pub fn issued_validity(&self, now: Timestamp, life: Duration) -> Result<Validity, PkiError> {
        let begins = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Ok(Validity { begins, ends: later(begins, life).min(self.validity()?.ends) })
    }

    /// Issues a certificate.
    pub fn issue(&self, subject: &Subject<'_>, now: Timestamp, life: Duration) -> Result<Issued, PkiError> {
        let failed = |source| PkiError::Certificate { what: "a certificate", source };
        let issuer = self.issuer()?;
        let validity = self.issued_validity(now, life)?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(subject.dns_names.to_vec()).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = subject.organizations.first() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, subject.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![subject.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity.begins, validity.ends);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        let certificate = match subject.organizations {
            [] | [_] => certificate.pem(),
            organizations => with_organizations(certificate.der(), subject.common_name, organizations, issuer.key())?,
        };
        Ok(Issued { certificate, key: Private::new(key.serialize_pem()), validity })
    }
}

/// The certificate with this subject instead of its own, signed anew, PEM. rcgen knows one organization only (a map of attributes), and API servers read a
/// group from each.
fn with_organizations(certificate: &[u8], common_name: &str, organizations: &[String], authority: &KeyPair) -> Result<String, PkiError> {
    const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
    const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
    /// Place of the subject in the part of a certificate that is signed (RFC 5280, 4.1), after the version.
    const SUBJECT: usize = 5;
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general enough")]
    let parts = |der: &[u8]| yasna::parse_der(der, |reader| reader.collect_sequence_of(|part| part.read_der()));
    let unreadable = |_| PkiError::Unreadable("a certificate that was just made");
    let outer = parts(certificate).map_err(unreadable)?;
    let [signed, algorithm, _] = &outer[..] else { return Err(PkiError::Unreadable("a certificate that was just made")) };
    let mut fields = parts(signed).map_err(unreadable)?;
    let attributes = organizations.iter().map(|name| (ORGANIZATION, name.as_str())).chain([(COMMON_NAME, common_name)]);
    let subject = yasna::construct_der(|writer| {
        writer.write_sequence(|names| {
            for (kind, value) in attributes {
                names.next().write_set(|set| {
                    set.next().write_sequence(|attribute| {
                        attribute.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(kind));
                        attribute.next().write_utf8_string(value);
                    });
                });
            }
        });
    });
    let place = fields.get_mut(SUBJECT).ok_or(PkiError::Unreadable("a certificate that was just made"))?;
    *place = subject;
    let signed = sequence(&fields);
    let signature = authority.sign(&signed).map_err(|source| PkiError::Certificate { what: "a certificate", source })?;
    let signature = yasna::construct_der(|writer| writer.write_bitvec_bytes(&signature, signature.len() * 8));
    let whole = sequence(&[signed, algorithm.clone(), signature]);
    Ok(pem::encode_config(&pem::Pem::new("CERTIFICATE", whole), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF)))
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    yasna::construct_der(|writer| writer.write_sequence(|sequence| parts.iter().for_each(|part| sequence.next().write_der(part))))
}

fn no_authority(source: rcgen::Error) -> PkiError {
    PkiError::Certificate { what: "an authority", source }
}

fn authority_params(common_name: &str, now: Timestamp, ends: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, ends);
    params
}

/// Sets both ends of a certificate's life. Whole seconds, as certificates and the API have them.
fn set_validity(params: &mut CertificateParams, begins: Timestamp, ends: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |time: Timestamp| u64::try_from(time.as_second()).unwrap_or(0);
    params.not_before = epoch + Duration::from_secs(seconds(begins).saturating_sub(EARLIER.as_secs()));
    params.not_after = epoch + Duration::from_secs(seconds(ends));
}

/// The operator's own certificate towards agents. It lives in memory only.
pub fn operator_certificate(agents: &Authority, now: Timestamp) -> Result<Issued, PkiError> {
    let names = [OPERATOR_NAME.to_owned()];
    let subject = Subject { common_name: OPERATOR_NAME, organizations: &[], dns_names: &names, usage: ExtendedKeyUsagePurpose::ClientAuth };
    agents.issue(&subject, now, CHANNEL_LIFE)
}

/// Everything that the keys Secret of one cluster holds.
pub fn cluster_keys(identity: &Identity, agents: &Authority, now: Timestamp) -> Result<BTreeMap<String, ByteString>, PkiError> {
    // The names that kubeadm gives them.
    let cluster = Authority::new("kubernetes", now)?;
    let front_proxy = Authority::new("front-proxy-ca", now)?;
    let etcd = Authority::new("etcd-ca", now)?;
    let accounts = KeyPair::generate().map_err(|source| PkiError::Certificate { what: "the service accounts' key", source })?;
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
    ];
    let own = all.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    Ok(own.chain(channel_keys(identity, agents, now)?).collect())
}

/// The part of the keys Secret that is about the channel to the agent, and that is made anew from time to time.
pub fn channel_keys(identity: &Identity, agents: &Authority, now: Timestamp) -> Result<BTreeMap<String, ByteString>, PkiError> {
    let names = [identity.agent_server_name()];
    let subject = Subject { common_name: "agent.nestling", organizations: &[], dns_names: &names, usage: ExtendedKeyUsagePurpose::ServerAuth };
    let agent = agents.issue(&subject, now, CHANNEL_LIFE)?;
    let all = [(keys::AGENT_CERTIFICATE, agent.certificate), (keys::AGENT_KEY, agent.key.0), (keys::AGENT_AUTHORITY, agents.believed())];
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
    use nestling_core::plan::certificates::Validity;
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
    fn nothing_outlives_its_authority() {
        let agents = Authority::new("agents", now()).unwrap();
        let end = agents.validity().unwrap().ends;
        assert_eq!(end, later(now(), AUTHORITY_LIFE));
        assert_eq!(operator_certificate(&agents, now()).unwrap().validity, Validity { begins: now(), ends: later(now(), CHANNEL_LIFE) });
        let late = end.checked_sub(jiff::SignedDuration::from_hours(5)).unwrap();
        let issued = operator_certificate(&agents, late).unwrap();
        assert_eq!(issued.validity, Validity { begins: late, ends: end });
        assert_eq!(validity(&issued.certificate).unwrap().ends, end);
    }

    #[test]
    fn a_successor_is_signed_by_its_predecessor_and_ends_with_it_there() {
        let agents = Authority::new("agents", now()).unwrap();
        let then = later(now(), AUTHORITY_LIFE / 3 * 2);
        let next = agents.successor("agents 2", then).unwrap();
        assert_eq!(next.validity().unwrap().ends, later(then, AUTHORITY_LIFE));
        let before = next.before.as_ref().unwrap();
        assert_eq!(validity(&before.successor).unwrap().ends, agents.validity().unwrap().ends);
        let (_, old) = parse_x509_pem(agents.certificate.as_bytes()).unwrap();
        let (_, crossed) = parse_x509_pem(before.successor.as_bytes()).unwrap();
        let (_, new) = parse_x509_pem(next.certificate.as_bytes()).unwrap();
        let (old, crossed, new) = (old.parse_x509().unwrap(), crossed.parse_x509().unwrap(), new.parse_x509().unwrap());
        assert_eq!((crossed.issuer(), crossed.subject()), (old.subject(), new.subject()));
        assert_eq!(crossed.public_key().raw, new.public_key().raw);
        assert_eq!(next.believed().matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn secrets_are_not_printed() {
        let authority = Authority::new("agents", now()).unwrap();
        let issued = operator_certificate(&authority, now()).unwrap();
        let printed = format!("{authority:?} {issued:?}");
        assert!(!printed.contains("PRIVATE KEY"), "{printed}");
    }
}
