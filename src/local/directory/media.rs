//! Content types by file extension, as the tools that write such files name them.

/// Returns whether `extension` belongs to some content type.
pub(super) fn is_extension(extension: &str) -> bool {
    mime_guess::from_ext(extension).first_raw().is_some()
}

/// Returns the content type of a file without a sidecar, by the last extension of its name.
pub(super) fn content_type(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = match name.rsplit_once('.') {
        Some((_, extension)) => extension,
        None => "",
    };
    match mime_guess::from_ext(extension).first_raw() {
        Some(kind) if kind.starts_with("text/") || kind == "application/json" => {
            format!("{kind}; charset=utf-8")
        }
        Some("application/javascript") => "application/javascript; charset=utf-8".to_owned(),
        Some(kind) => kind.to_owned(),
        None => "application/octet-stream".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::content_type;

    #[test]
    fn content_types_are_those_of_the_tools() {
        for (path, kind) in [
            ("INPUT.json", "application/json; charset=utf-8"),
            ("note.txt", "text/plain; charset=utf-8"),
            ("note.text", "text/plain; charset=utf-8"),
            ("page.html", "text/html; charset=utf-8"),
            ("a/pic.PNG", "image/png"),
            ("odd.bin", "application/octet-stream"),
            ("INPUT", "application/octet-stream"),
        ] {
            assert_eq!(content_type(path), kind, "{path}");
        }
    }
}
