//! Objects as the caches keep them: as compressed text. Nothing is left out.
//!
//! Objects of one kind differ in a few names and times, so each is compressed against another one of its kind, and what is left of it is a few
//! hundred bytes (`docs/decisions/0023-compact-caches.md`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use lz4_flex::block::{DecompressError, compress_with_dict, decompress_with_dict};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest text that others are compressed against, in bytes: with each of them it is gone through once.
const SAMPLE: usize = 16 << 10;

/// What was packed cannot be unpacked: only a programming error leads here.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Compression.
    #[error("a cached object cannot be decompressed: {0}")]
    Compression(#[from] DecompressError),
    /// The text.
    #[error("a cached object cannot be read: {0}")]
    Text(#[from] serde_json::Error),
}

/// An object.
#[derive(Clone)]
pub struct Packed {
    bytes: Box<[u8]>,
    /// Length of the text.
    length: usize,
    /// What it was compressed against.
    sample: Arc<[u8]>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes for {}", self.bytes.len(), self.length)
    }
}

impl Packed {
    /// The object.
    ///
    /// # Errors
    /// None, if it was packed from an object of this type.
    pub fn unpack<T: DeserializeOwned>(&self) -> Result<T, UnpackError> {
        Ok(serde_json::from_slice(&decompress_with_dict(&self.bytes, self.length, &self.sample)?)?)
    }
}

/// Packs objects of one kind.
#[derive(Debug)]
pub struct Packer(Mutex<Arc<[u8]>>);

impl Default for Packer {
    fn default() -> Self {
        Self(Mutex::new(Arc::from([])))
    }
}

impl Packer {
    /// Packs an object.
    ///
    /// # Errors
    /// If it cannot be written as JSON, which everything from an API server can.
    pub fn pack<T: Serialize>(&self, object: &T) -> Result<Packed, serde_json::Error> {
        let text = serde_json::to_vec(object)?;
        let mut sample = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut bytes = compress_with_dict(&text, &sample);
        // The first of its kind, or the first that has come further in life than those before.
        if bytes.len() > text.len() / 3 && text.len() > sample.len() && text.len() <= SAMPLE {
            sample = Arc::from(text.as_slice());
            bytes = compress_with_dict(&text, &sample);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&sample);
        }
        Ok(Packed { bytes: bytes.into_boxed_slice(), length: text.len(), sample })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pod(number: usize, phase: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("c-crane-{number}-1"), "uid": format!("0b5c5c4e-0000-4000-8000-{number:012}"), "labels": {"nestling.dev/cluster-name": format!("crane-{number}")}},
            "spec": {"containers": [{"name": "cluster", "image": "registry.example/node:1", "args": ["agent"], "env": [{"name": "KUBERNETES_SERVICE_HOST", "value": ""}]}]},
            "status": phase.map(|phase| json!({"phase": phase, "podIP": format!("10.244.1.{number}"), "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]})),
        }))
        .unwrap()
    }

    #[test]
    fn objects_of_a_kind_cost_little_and_come_back_whole() {
        let packer = Packer::default();
        for phase in [None, Some("Running")] {
            for number in 1..50 {
                let small = packer.pack(&pod(number, phase)).unwrap();
                assert_eq!(small.unpack::<Pod>().unwrap(), pod(number, phase));
                assert!(small.bytes.len() < small.length / 3, "{number} {phase:?} {small:?}");
            }
        }
        let early = packer.pack(&pod(1, None)).unwrap();
        packer.pack(&"x".repeat(SAMPLE - 2)).unwrap();
        assert_eq!(early.unpack::<Pod>().unwrap(), pod(1, None), "each keeps what it was compressed against");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from), ".{0,40}".prop_map(Value::from)];
        leaf.prop_recursive(4, 60, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,8}", inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever came before.
        #[test]
        fn whatever_is_packed_comes_back(values in prop::collection::vec(any_value(), 1..12)) {
            let packer = Packer::default();
            let all: Vec<Packed> = values.iter().map(|value| packer.pack(value).unwrap()).collect();
            for (value, small) in values.iter().zip(&all) {
                prop_assert_eq!(value, &small.unpack::<Value>().unwrap());
            }
        }
    }
}
