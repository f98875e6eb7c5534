//! References of images, as they are written and as they are known.

/// With its registry, and Docker's own images with `library/`. As `splitDockerDomain` of github.com/distribution/reference.
pub fn in_full(image: &str) -> String {
    let (registry, name) = match image.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(|character: char| matches!(character, '.' | ':') || character.is_ascii_uppercase()) => {
            (first, rest)
        }
        _ => ("docker.io", image),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    if registry == "docker.io" && !name.contains('/') {
        return format!("{registry}/library/{name}");
    }
    format!("{registry}/{name}")
}

/// Whether something is said of which of the images of this name it is. A colon before the last slash is a port.
pub fn has_tag_or_digest(image: &str) -> bool {
    image.contains('@') || image.rsplit('/').next().unwrap_or_default().contains(':')
}

/// Without tag and digest.
pub fn repository(image: &str) -> &str {
    let (tagged, _) = image.split_once('@').unwrap_or((image, ""));
    match tagged.rfind(':') {
        Some(colon) if !tagged[colon..].contains('/') => &tagged[..colon],
        _ => tagged,
    }
}

/// The name under which containerd's CRI looks for an image, whatever a pod calls it: in full, with the digest if there is one, else with the tag. As
/// `ParseDockerRef` of github.com/distribution/reference.
pub fn name_in_nodes(image: &str) -> String {
    let full = in_full(image);
    match full.split_once('@') {
        Some((_, digest)) => format!("{}@{digest}", repository(&full)),
        None => tagged(full),
    }
}

/// With the tag that is meant where nothing is said.
pub fn tagged(image: String) -> String {
    if has_tag_or_digest(&image) { image } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("nginx", "docker.io/library/nginx:latest")]
    #[case("nginx:1", "docker.io/library/nginx:1")]
    #[case("team/app:1", "docker.io/team/app:1")]
    #[case("docker.io/nginx:1", "docker.io/library/nginx:1")]
    #[case("localhost/app", "localhost/app:latest")]
    #[case("registry.example:5000/app", "registry.example:5000/app:latest")]
    #[case("registry.example:5000/a/b:1", "registry.example:5000/a/b:1")]
    #[case("nginx:1@sha256:aa", "docker.io/library/nginx@sha256:aa")]
    #[case("registry.example:5000/a@sha256:aa", "registry.example:5000/a@sha256:aa")]
    fn names_are_those_of_the_cri(#[case] written: &str, #[case] name: &str) {
        assert_eq!(name_in_nodes(written), name);
        assert_eq!(name_in_nodes(name), name);
    }

    #[rstest]
    #[case("registry.example:5000/a:1@sha256:aa", "registry.example:5000/a")]
    #[case("registry.example:5000/a", "registry.example:5000/a")]
    #[case("nginx:1", "nginx")]
    fn repositories_have_neither_tag_nor_digest(#[case] image: &str, #[case] expected: &str) {
        assert_eq!(repository(image), expected);
    }
}
