//! What both sides read out of certificates.

use jiff::Timestamp;
use nestling_core::plan::certificates::Validity;
use x509_parser::pem::parse_x509_pem;

/// From when until when a certificate (the first one in a PEM text) holds; `None` if it is none.
pub fn validity(pem: &str) -> Option<Validity> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let validity = pem.parse_x509().ok()?.validity().clone();
    let time = |second: i64| Timestamp::from_second(second).ok();
    Some(Validity { begins: time(validity.not_before.timestamp())?, ends: time(validity.not_after.timestamp())? })
}
