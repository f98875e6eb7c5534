//! The CustomResourceDefinitions, plain and as a template of the chart.

use anyhow::Result;
use nestling_core::api::crds;

use super::YAML_NOTICE;

/// For `kubectl apply --server-side`.
pub fn plain() -> Result<String> {
    let mut text = YAML_NOTICE.to_owned();
    for crd in crds::all() {
        text += "---\n";
        text += &serde_saphyr::to_string(&crd)?;
    }
    Ok(text)
}

/// For the chart. A template and not a file in its `crds/`, because Helm never upgrades those.
pub fn chart_template() -> Result<String> {
    let mut text = YAML_NOTICE.to_owned();
    text += "{{- if .Values.crds.install }}\n";
    for mut crd in crds::all() {
        crd.metadata.annotations.get_or_insert_default().insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        text += "---\n";
        text += &escape(&serde_saphyr::to_string(&crd)?);
    }
    text += "{{- end }}\n";
    Ok(text)
}

/// What would open an action of Helm's template language; closing braces outside of one are plain text.
fn escape(text: &str) -> String {
    text.replace("{{", "{{ `{{` }}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_crd_is_a_template() {
        assert_eq!(escape("a {{ b }}"), "a {{ `{{` }} b }}");
    }
}
