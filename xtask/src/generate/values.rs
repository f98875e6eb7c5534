//! `docs/reference/chart-values.md`: descriptions from the comments of `values.yaml`, types from its schema.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{PAGE_NOTICE, cell, code};

/// The page.
pub fn page(values: &str, schema: &str) -> Result<String> {
    let defaults: Value = serde_saphyr::from_str(values).context("values.yaml")?;
    let schema: Value = serde_json::from_str(schema).context("values.schema.json")?;
    let mut text = PAGE_NOTICE.to_owned();
    text += "# Values of the Helm chart\n\n\
        A value that is not listed here is refused.\n\n\
        | Value | Type | Default | Meaning |\n|---|---|---|---|\n";
    for (path, comment) in comments(values) {
        let default = lookup(&defaults, &path).with_context(|| format!("{path} has no default"))?;
        let Some(type_) = type_of(&schema, &path) else { bail!("values.schema.json does not know {path}") };
        let default = if type_ == "section" { String::new() } else { code(&default.to_string()) };
        let _ = writeln!(text, "| {} | {} | {default} | {} |", code(&path), cell(&type_), cell(&comment));
    }
    Ok(text)
}

/// Every key that has a comment right above it, as `(path, comment)`.
fn comments(values: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut comment = String::new();
    for line in values.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(said) = trimmed.strip_prefix('#') {
            comment += said;
        } else if let Some((key, _)) = trimmed.split_once(':').filter(|(key, _)| !key.starts_with('-')) {
            above.retain(|(depth, _)| *depth < indent);
            above.push((indent, key));
            if !comment.is_empty() {
                found.push((above.iter().map(|(_, key)| *key).collect::<Vec<_>>().join("."), std::mem::take(&mut comment)));
            }
        } else {
            // A blank line: what stood above it was not about a key.
            comment.clear();
        }
    }
    found
}

fn lookup<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// The type that the schema gives a value.
fn type_of(schema: &Value, path: &str) -> Option<String> {
    let found = path.split('.').try_fold(schema, |at, key| resolve(schema, at).get("properties")?.get(key))?;
    let found = resolve(schema, found);
    if let Some(allowed) = found.get("enum").and_then(Value::as_array) {
        return Some(allowed.iter().map(|value| code(value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(", "));
    }
    let name = found.get("type")?.as_str()?;
    Some(match name {
        "object" if found.get("properties").is_some() => "section".to_owned(),
        "array" => "list".to_owned(),
        "object" => "map".to_owned(),
        other => other.to_owned(),
    })
}

fn resolve<'a>(schema: &'a Value, at: &'a Value) -> &'a Value {
    at.get("$ref").and_then(Value::as_str).and_then(|reference| schema.pointer(reference.trim_start_matches('#'))).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_belong_to_the_key_below() {
        let values = "# About the file.\n\n# A.\na:\n  # B,\n  # two lines.\n  b: 1\n  c: 2\n# D.\nd: {}\n";
        let expected = [("a", " A."), ("a.b", " B, two lines."), ("d", " D.")].map(|(path, comment)| (path.to_owned(), comment.to_owned()));
        assert_eq!(comments(values), expected);
    }

    #[test]
    fn a_value_that_the_schema_does_not_know_is_an_error() {
        assert!(page("# A.\na: 1\n", r#"{"properties": {}}"#).is_err());
    }
}
