//! From a manifest's text to objects.

use serde_json::Value;

/// Most objects of one manifest.
const OBJECTS: usize = 2000;

/// Why a text is no manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// It is no YAML, or too much of it. Where, not what: the text may be a secret.
    #[error("cannot be read as YAML at line {line}, column {column}")]
    Yaml {
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
    },
    /// A document is no object with kind and name.
    #[error("has a part that is no object: the {0}. lacks apiVersion, kind or metadata.name")]
    NoObject(usize),
    /// There is nothing in it.
    #[error("holds no objects")]
    Empty,
    /// There is too much in it.
    #[error("holds more than {OBJECTS} objects")]
    TooMany,
}

/// The objects of a manifest, in order: of several documents, and of lists. YAML is read as kubectl reads it: `yes` is a boolean, and `0644` is octal.
///
/// # Errors
/// [`Unreadable`], which repeats nothing of the text.
pub fn read(text: &str) -> Result<Vec<Value>, Unreadable> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let location = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
        Unreadable::Yaml { line: location.line(), column: location.column() }
    })?;
    let mut objects = Vec::new();
    for document in documents {
        unfold(document, &mut objects);
    }
    if objects.len() > OBJECTS {
        return Err(Unreadable::TooMany);
    }
    if objects.is_empty() {
        return Err(Unreadable::Empty);
    }
    let whole = |object: &Value| ["/apiVersion", "/kind", "/metadata/name"].into_iter().all(|field| object.pointer(field).is_some_and(Value::is_string));
    match objects.iter().position(|object| !whole(object)) {
        Some(index) => Err(Unreadable::NoObject(index + 1)),
        None => Ok(objects),
    }
}

/// What is in a document: itself, or the items of a list (`kind: List`, but also `ConfigMapList` and the like).
fn unfold(mut document: Value, objects: &mut Vec<Value>) {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get_mut("items").and_then(Value::as_array_mut).filter(|_| is_list) {
        Some(items) => objects.append(items),
        None => objects.extend(Some(document).filter(|document| !document.is_null())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn names(text: &str) -> Result<Vec<String>, Unreadable> {
        let name = |object: &Value| format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        read(text).map(|objects| objects.iter().map(name).collect())
    }

    #[test]
    fn documents_and_lists_are_unfolded_in_order() {
        let text = "---\n# a licence\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n---\n---\napiVersion: v1\nkind: List\nitems:\n\
            - {apiVersion: v1, kind: Service, metadata: {name: b}}\n- {apiVersion: v1, kind: Service, metadata: {name: c}}\n\
            ---\n{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"d\"}}\n";
        assert_eq!(names(text).unwrap(), ["ConfigMap/a", "Service/b", "Service/c", "Namespace/d"]);
    }

    #[test]
    fn yaml_is_read_as_kubectl_reads_it() {
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {mode: 0644, tty: yes, id: '0644', version: 1.20, port: 0x10, text: n}}";
        let spec = read(text).unwrap()[0]["spec"].take();
        assert_eq!((&spec["mode"], &spec["tty"], &spec["id"]), (&Value::from(420), &Value::from(true), &Value::from("0644")));
        assert_eq!((&spec["version"], &spec["port"]), (&Value::from(1.2), &Value::from(16)));
    }

    #[rstest]
    #[case("", Unreadable::Empty)]
    #[case("# nothing\n---\n", Unreadable::Empty)]
    #[case("{apiVersion: v1, kind: List, items: []}", Unreadable::Empty)]
    #[case("{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\nhidden", Unreadable::NoObject(2))]
    #[case("{apiVersion: v1, kind: Pod, metadata: {generateName: hidden-}}", Unreadable::NoObject(1))]
    #[case("[{apiVersion: v1, kind: Pod, metadata: {name: a}}]", Unreadable::NoObject(1))]
    fn what_is_no_manifest(#[case] text: &str, #[case] expected: Unreadable) {
        let found = names(text).unwrap_err();
        assert!(!found.to_string().contains("hidden"), "{found}");
        assert_eq!(found, expected);
    }

    #[test]
    fn an_error_says_where_and_never_what() {
        let found = names("apiVersion: v1\nkind: Secret\ndata: {a: 'hidden\n").unwrap_err();
        assert!(matches!(found, Unreadable::Yaml { line: 3.., .. }), "{found:?}");
        assert!(!found.to_string().contains("hidden"), "{found}");
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb = format!("{bomb}a{level}: &a{level} [{}]\n", before.trim_end_matches(", "));
        }
        assert!(matches!(names(&bomb), Err(Unreadable::Yaml { .. })));
        let many = "- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n".repeat(OBJECTS + 1);
        assert_eq!(names(&format!("apiVersion: v1\nkind: List\nitems:\n{many}")), Err(Unreadable::TooMany));
    }
}
