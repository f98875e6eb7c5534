//! The most of a resource.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use crate::plan::quantity;

/// A quantity that can be compared with; written as a number or as a text.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Written")]
pub struct Limit {
    quantity: Quantity,
    thousandths: i64,
}

/// YAML makes a number of `cpu: 4` and a text of `memory: 8Gi`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Text(String),
}

impl TryFrom<Written> for Limit {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let quantity = Quantity(match written {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        });
        let thousandths = quantity::thousandths(&quantity).ok_or_else(|| format!("{} is not a quantity", quantity.0))?;
        Ok(Self { quantity, thousandths })
    }
}

impl Limit {
    /// As it was written.
    pub const fn quantity(&self) -> &Quantity {
        &self.quantity
    }

    /// Whether so much is not too much. What cannot be compared is.
    pub fn admits(&self, wanted: &Quantity) -> bool {
        quantity::thousandths(wanted).is_some_and(|wanted| wanted <= self.thousandths)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.quantity.0)
    }
}
