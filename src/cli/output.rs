//! The forms of an answer. Pure: text from values.

use anyhow::Result;
use serde_json::{Value, json};

use super::Form;

/// Objects in a form for programs; `None` for [`Form::Wide`], which is a table. One that was asked for by its name stands alone, as with kubectl; several
/// are a `List`.
///
/// # Errors
/// None that a Kubernetes object can bring about.
pub fn objects(mut objects: Vec<Value>, form: Form, alone: bool) -> Result<Option<String>> {
    for object in &mut objects {
        // As kubectl does: nobody reads them.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    if form == Form::Name {
        return Ok(Some(objects.iter().map(|object| name(object) + "\n").collect()));
    }
    let value = match objects.pop() {
        Some(object) if alone && objects.is_empty() => object,
        last => {
            objects.extend(last);
            json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects})
        }
    };
    match form {
        Form::Json => Ok(Some(serde_json::to_string_pretty(&value)? + "\n")),
        Form::Yaml => Ok(Some(yaml(&value)?)),
        Form::Wide | Form::Name => Ok(None),
    }
}

/// An object as `kubectl get -o name` writes it.
fn name(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let group = object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}

/// A value as YAML that readers of YAML 1.1, such as kubectl, understand as it is meant.
pub fn yaml(value: &Value) -> Result<String> {
    Ok(serde_saphyr::to_string(value)?.trim_end().to_owned() + "\n")
}

/// Rows in columns, as kubectl sets them: three spaces apart, none at the end of a line. All rows have as many cells.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).fold(String::new(), |cells, (cell, width)| cells + &format!("{cell:width$}   "));
        cells.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Value {
        json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": name, "managedFields": [{}]}, "spec": {"version": "v1.34.4"}})
    }

    #[test]
    fn forms_for_programs() {
        let text = |names: &[&str], form, alone| objects(names.iter().map(|name| cluster(name)).collect(), form, alone).unwrap();
        assert_eq!(text(&["crane", "owl"], Form::Name, false).unwrap(), "kindcluster.nestling.dev/crane\nkindcluster.nestling.dev/owl\n");
        assert_eq!(text(&["crane"], Form::Wide, true), None);
        insta::assert_snapshot!(text(&["crane"], Form::Yaml, true).unwrap());
        insta::assert_snapshot!(text(&["crane"], Form::Yaml, false).unwrap());
        let list: Value = serde_json::from_str(&text(&["crane", "owl"], Form::Json, false).unwrap()).unwrap();
        assert_eq!((list["kind"].as_str(), list["items"][1]["metadata"]["name"].as_str()), (Some("List"), Some("owl")));
        assert_eq!(text(&[], Form::Name, false).unwrap(), "");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "READY"], ["a-long-name", "True"], ["ö", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "NAME          READY\na-long-name   True\nö\n");
        assert_eq!(columns(&[]), "");
    }
}
