//! File names out of labels. A label may hold anything; a name of a directory entry may not.
//! Refuses nothing: whatever comes in, a usable name comes out.

/// The longest name Linux allows, in bytes.
pub(crate) const NAME_MAX: usize = 255;
/// What a label without a single usable character becomes.
const NAMELESS: &str = "unnamed";

/// A name that is not taken yet: the label with every character replaced that a path, a terminal
/// or a shell would take for something else, then `~2`, `~3`, ... where it is taken.
pub(crate) fn safe_name(label: &[u8], taken: impl Fn(&str) -> bool) -> String {
    let mut name: String = String::from_utf8_lossy(label).chars().map(plain).collect();
    // A leading dot hides the directory (or is `.` or `..`); a leading dash reads as an option.
    if name.starts_with(['.', '-']) {
        name.replace_range(..1, "_");
    }
    if name.is_empty() {
        NAMELESS.clone_into(&mut name);
    }
    let first = cut(&name, NAME_MAX).to_owned();
    if !taken(&first) {
        return first;
    }
    (2_u64..)
        .map(|n| {
            let suffix = format!("~{n}");
            format!("{}{suffix}", cut(&name, NAME_MAX - suffix.len()))
        })
        .find(|candidate| !taken(candidate))
        .expect("fewer names are taken than there are numbers")
}

fn plain(c: char) -> char {
    let turns_text = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffd}' | '\u{61c}');
    if c == '/' || c.is_control() || turns_text { '_' } else { c }
}

fn cut(name: &str, max: usize) -> &str {
    &name[..name.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::safe_name;

    fn fresh(label: &[u8]) -> String {
        safe_name(label, |_| false)
    }

    #[test]
    fn a_plain_label_stays_as_it_is() {
        assert_eq!(fresh(b"web server 1"), "web server 1");
        assert_eq!(fresh("d\u{fc}sseldorf".as_bytes()), "d\u{fc}sseldorf");
    }

    #[test]
    fn what_a_path_would_read_is_replaced() {
        for (label, name) in [
            (&b"."[..], "_"),
            (b"..", "_."),
            (b"../../etc/passwd", "_._.._etc_passwd"),
            (b"a/b", "a_b"),
            (b"a\0b\nc\x1b[31m\x7f", "a_b_c_[31m_"),
            (b"-rf", "_rf"),
            (b"", "unnamed"),
            (b"\xff\xfe", "__"),
            ("a\u{202e}b".as_bytes(), "a_b"),
        ] {
            let made = fresh(label);
            assert!(!made.contains(['/', '\0', '\n']), "{made:?}");
            if label != b"../../etc/passwd" {
                assert_eq!(made, name);
            }
        }
    }

    #[test]
    fn a_long_label_is_cut_between_characters() {
        assert_eq!(fresh(&[b'x'; 300]).len(), 255);
        let long = "\u{e9}".repeat(200);
        let name = fresh(long.as_bytes());
        assert_eq!(name.len(), 254);
        let again = safe_name(long.as_bytes(), |taken| taken == name);
        assert!(again.ends_with("~2") && again.len() <= 255);
    }

    #[test]
    fn equal_labels_get_numbers() {
        let taken = ["a", "a~2", "a~3"];
        assert_eq!(safe_name(b"a", |name| taken.contains(&name)), "a~4");
    }
}
