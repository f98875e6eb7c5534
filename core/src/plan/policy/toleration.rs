//! Tolerations that are allowed.

use std::fmt;

use k8s_openapi::api::core::v1::Toleration;
use serde::Deserialize;

/// A toleration as Kubernetes writes them, without `tolerationSeconds`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AllowedToleration {
    key: String,
    operator: Operator,
    value: String,
    effect: String,
}

/// How the values are compared.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
enum Operator {
    /// This value.
    #[default]
    Equal,
    /// Any value.
    Exists,
    /// One that no policy can name; only `Exists` covers it.
    #[serde(skip)]
    Other(String),
}

impl From<Toleration> for AllowedToleration {
    fn from(toleration: Toleration) -> Self {
        Self {
            key: toleration.key.unwrap_or_default(),
            operator: match toleration.operator.as_deref() {
                None | Some("" | "Equal") => Operator::Equal,
                Some("Exists") => Operator::Exists,
                Some(other) => Operator::Other(other.to_owned()),
            },
            value: toleration.value.unwrap_or_default(),
            effect: toleration.effect.unwrap_or_default(),
        }
    }
}

impl AllowedToleration {
    /// Whether all taints that `wanted` tolerates are tolerated by this one as well.
    pub fn covers(&self, wanted: &Toleration) -> bool {
        let wanted = Self::from(wanted.clone());
        let taints = match self.operator {
            Operator::Exists => self.key.is_empty() || self.key == wanted.key,
            Operator::Equal | Operator::Other(_) => self.key == wanted.key && self.operator == wanted.operator && self.value == wanted.value,
        };
        taints && (self.effect.is_empty() || self.effect == wanted.effect)
    }
}

impl fmt::Display for AllowedToleration {
    /// As one would write it, without what is empty.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match &self.operator {
            Operator::Equal => "",
            Operator::Exists => "Exists",
            Operator::Other(other) => other,
        };
        let fields = [("key", self.key.as_str()), ("operator", operator), ("value", &self.value), ("effect", &self.effect)];
        let fields: Vec<String> = fields.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}: {value}")).collect();
        write!(formatter, "{{{}}}", fields.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("{operator: Exists}", "{operator: Exists}", true)]
    #[case("{operator: Exists}", "{key: a, value: b, effect: NoExecute}", true)]
    #[case("{operator: Exists, effect: NoSchedule}", "{key: a}", false)]
    #[case("{key: a, operator: Exists}", "{key: a, value: b}", true)]
    #[case("{key: a, operator: Exists}", "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 9}", true)]
    #[case("{key: a, operator: Exists}", "{key: a, operator: Gt, value: '3'}", true)]
    #[case("{key: a, operator: Exists}", "{key: b, operator: Exists}", false)]
    #[case("{key: a, operator: Exists}", "{operator: Exists}", false)]
    #[case("{key: a, value: b}", "{key: a, operator: Equal, value: b}", true)]
    #[case("{key: a, value: b}", "{key: a, operator: '', value: b}", true)]
    #[case("{key: a, value: b}", "{key: a, operator: Exists}", false)]
    #[case("{key: a, value: b}", "{key: a, operator: Gt, value: b}", false)]
    #[case("{key: a, value: b}", "{key: a, value: c}", false)]
    #[case("{key: a, value: b, effect: NoSchedule}", "{key: a, value: b}", false)]
    fn coverage(#[case] allowed: &str, #[case] wanted: &str, #[case] covered: bool) {
        let allowed: AllowedToleration = serde_saphyr::from_str(allowed).unwrap();
        assert_eq!(allowed.covers(&serde_saphyr::from_str(wanted).unwrap()), covered);
    }
}
