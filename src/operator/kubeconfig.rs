//! Credentials for a cluster, from its own authority.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use nestling_core::plan::credentials::Bearer;
use nestling_core::plan::objects::Credentials;
use rcgen::ExtendedKeyUsagePurpose;

use super::agent_authority::text;
use super::pki::{Authority, PkiError, Private, Subject};

/// Mints credentials from the keys of a cluster. Returns also when they end.
pub fn mint(keys: &Secret, bearer: &Bearer, now: Timestamp, life: Duration) -> Result<(Credentials, Timestamp), PkiError> {
    let authority = Authority { certificate: text(keys, "ca.crt")?, key: Private::new(text(keys, "ca.key")?), before: None };
    let (common_name, groups) = (bearer.common_name(), bearer.groups());
    let subject = Subject { common_name: &common_name, organizations: &groups, dns_names: &[], usage: ExtendedKeyUsagePurpose::ClientAuth };
    let issued = authority.issue(&subject, now, life)?;
    let credentials = Credentials { authority: authority.certificate, certificate: issued.certificate, key: issued.key.expose().to_owned() };
    Ok((credentials, issued.validity.ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use nestling_core::plan::certificates::KUBECONFIG_LIFE;
    use nestling_core::plan::names::Identity;
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use x509_parser::pem::parse_x509_pem;

    use crate::operator::pki::cluster_keys;

    fn minted(now: Timestamp) -> (Credentials, Timestamp) {
        minted_for(&Bearer::Admin, now)
    }

    fn minted_for(bearer: &Bearer, now: Timestamp) -> (Credentials, Timestamp) {
        let identity = Identity { namespace: "marsh".into(), name: "crane".into(), uid: "u".into() };
        let agents = Authority::new("agents", now).unwrap();
        let keys = Secret { data: Some(cluster_keys(&identity, &agents, now).unwrap()), ..Secret::default() };
        mint(&keys, bearer, now, KUBECONFIG_LIFE).unwrap()
    }

    #[test]
    fn the_certificate_is_the_groups_for_a_year() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (credentials, expires) = minted(now);
        let (_, pem) = parse_x509_pem(credentials.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let organizations: Vec<_> = certificate.subject().iter_organization().map(|organization| organization.as_str().unwrap()).collect();
        assert_eq!(organizations, ["nestling:cluster-admins"]);
        assert_eq!(certificate.validity().not_before.timestamp(), 1_800_000_000 - 300);
        assert_eq!(certificate.validity().not_after.timestamp(), expires.as_second());
        assert_eq!(expires.as_second(), 1_800_000_000 + 365 * 86_400);
    }

    fn subject_of(credentials: &Credentials) -> (Vec<String>, Vec<String>) {
        let (_, pem) = parse_x509_pem(credentials.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let texts = |attributes: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes.into_iter().map(|attribute| attribute.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (texts(certificate.subject().iter_common_name().collect()), texts(certificate.subject().iter_organization().collect()))
    }

    #[test]
    fn a_user_is_in_all_of_its_groups_and_in_no_other() {
        for groups in [vec![], vec!["one".to_owned()], vec!["one".to_owned(), "zwei ü".to_owned(), "three".to_owned()]] {
            let (credentials, _) = minted_for(&Bearer::User { name: "ci".into(), groups: groups.clone() }, Timestamp::now());
            assert_eq!(subject_of(&credentials), (vec!["nestling:user:ci".to_owned()], groups));
            is_vouched_for(&credentials);
        }
    }

    #[test]
    fn the_clusters_authority_vouches_for_it() {
        is_vouched_for(&minted(Timestamp::now()).0);
    }

    fn is_vouched_for(credentials: &Credentials) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(credentials.authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(credentials.certificate.as_bytes()).unwrap();
        verifier.verify_client_cert(&certificate, &[], UnixTime::now()).unwrap();
    }

    #[test]
    fn keys_that_are_missing_are_named() {
        let error = mint(&Secret::default(), &Bearer::Admin, Timestamp::now(), KUBECONFIG_LIFE).err().unwrap();
        assert_eq!(error.to_string(), "ca.crt is missing or cannot be read");
    }
}
