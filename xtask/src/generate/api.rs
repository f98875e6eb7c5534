//! `docs/reference/api.md`: the fields, from the schema that the API server enforces.

use std::fmt::Write;

use anyhow::{Context, Result};
use nestling_core::api::crds;
use nestling_core::plan::changes::FIELDS;
use serde_json::Value;

use super::{PAGE_NOTICE, cell, code};

/// Kubernetes' own types: named, not repeated.
const FOREIGN: [(&str, &str); 4] =
    [(".pod.affinity", "Affinity"), (".pod.tolerations", "[]Toleration"), (".spec.resources", "ResourceRequirements"), (".status.conditions", "[]Condition")];

/// The page.
pub fn page() -> Result<String> {
    let mut text = PAGE_NOTICE.to_owned();
    text += "# API\n\n\
        A `[]` behind a name stands for each entry of a list. *Rules* are checked by the API server when an object is written.\n";
    for crd in crds::all() {
        let names = &crd.spec.names;
        for version in &crd.spec.versions {
            let _ = write!(text, "\n## {} `{}/{}`\n\n", names.kind, crd.spec.group, version.name);
            if let Some(short) = names.short_names.iter().flatten().next() {
                let _ = write!(text, "Short name `{short}`, category `{}`. ", names.categories.iter().flatten().next().map_or("", String::as_str));
            }
            let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).context("every version has a schema")?;
            let schema = serde_json::to_value(schema)?;
            let _ = writeln!(text, "{}", description(&schema));
            let rules = rules(&schema);
            if !rules.is_empty() {
                let _ = writeln!(text, "\nRules: {}.", rules.join("; "));
            }
            for part in ["spec", "status"] {
                let _ = write!(text, "\n### {part}\n\n");
                let Some(schema) = schema.pointer(&format!("/properties/{part}")) else { continue };
                let rules = self::rules(schema);
                if !rules.is_empty() {
                    let _ = write!(text, "Rules: {}.\n\n", rules.join("; "));
                }
                text += "| Field | Type | Bounds and rules | Meaning |\n|---|---|---|---|\n";
                fields(&mut text, part, schema);
                if part == "spec" {
                    text += &changes();
                }
            }
        }
    }
    Ok(text)
}

/// What becomes of a change to each field, from the list that the tests hold against the schema and the decisions.
fn changes() -> String {
    let mut text = "\n### What a change does\n\n\
        *In place*: the running cluster takes it over, or it is about later attempts anyway. *A new cluster*: `UpToDate` becomes `False` with `RecreateRequired` and \
        names the field; the annotation `nestling.dev/recreate` then puts a new, empty cluster in the place of this one. *Refused*: by the API server.\n\n\
        | Field and all below it | A change | |\n|---|---|---|\n"
        .to_owned();
    for (path, effect, note) in FIELDS {
        let _ = writeln!(text, "| {} | {} | {} |", code(&format!("spec.{path}")), effect.text(), cell(note));
    }
    text
}

/// One row for each field, depth first.
fn fields(text: &mut String, path: &str, schema: &Value) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let foreign = FOREIGN.iter().find(|(end, _)| path.ends_with(end)).map(|(_, type_)| *type_);
        let mut bounds = bounds(field);
        if required.contains(&name.as_str()) {
            bounds.insert(0, "required".to_owned());
        }
        let type_ = foreign.map_or_else(|| type_of(field), ToOwned::to_owned);
        let _ = writeln!(text, "| {} | {} | {} | {} |", code(&path), cell(&type_), cell(&bounds.join("; ")), description(field));
        if foreign.is_some() {
            continue;
        }
        match field.get("items") {
            Some(items) => fields(text, &format!("{path}[]"), items),
            None => fields(text, &path, field),
        }
    }
}

fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
        return "integer or string".to_owned();
    }
    match schema["type"].as_str().unwrap_or("any") {
        "array" => format!("[]{}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => format!("map of {}", type_of(&schema["additionalProperties"])),
        "string" if schema["format"] == "date-time" => "time".to_owned(),
        other => other.to_owned(),
    }
}

fn bounds(schema: &Value) -> Vec<String> {
    let mut bounds = Vec::new();
    if let Some(allowed) = schema["enum"].as_array() {
        bounds.push(allowed.iter().filter_map(Value::as_str).map(code).collect::<Vec<_>>().join(" or "));
    }
    if !schema["default"].is_null() {
        bounds.push(format!("default {}", code(&schema["default"].to_string())));
    }
    let range = |least: &str, most: &str, what: &str| match (number(&schema[least]), number(&schema[most])) {
        (Some(least), Some(most)) if least == most => Some(format!("{least}{what}")),
        (Some(least), Some(most)) => Some(format!("{least} to {most}{what}")),
        (None, Some(most)) => Some(format!("at most {most}{what}")),
        (Some(least), None) => Some(format!("at least {least}{what}")),
        (None, None) => None,
    };
    bounds.extend(range("minimum", "maximum", ""));
    bounds.extend(range("minLength", "maxLength", " characters"));
    bounds.extend(range("minItems", "maxItems", " entries"));
    bounds.extend(range("minProperties", "maxProperties", " keys"));
    if schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true) {
        bounds.push("further fields are kept".to_owned());
    }
    bounds.extend(rules(schema));
    bounds
}

/// Bounds are stored as floats.
fn number(value: &Value) -> Option<String> {
    value.as_f64().map(|number| format!("{number}"))
}

fn rules(schema: &Value) -> Vec<String> {
    schema["x-kubernetes-validations"].as_array().into_iter().flatten().filter_map(|rule| Some(cell(rule["message"].as_str()?))).collect()
}

fn description(schema: &Value) -> String {
    cell(schema["description"].as_str().unwrap_or_default())
}
