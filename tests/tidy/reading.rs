//! Reads source without compiling it: blanks what is prose, finds words, items and paths. Judges
//! nothing.

use std::ops::Range;

/// A source file in three readings, all of the same length and with the same lines.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// Comments and the insides of literals blanked.
    pub(crate) code: String,
    /// As `code`, with what is compiled for tests only blanked too.
    pub(crate) lean: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank_prose(text);
        let lean = if is_test_path(path) { String::new() } else { blank_tests(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, lean }
    }

    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.code.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

fn is_test_path(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    ["benches", "fuzz"].contains(&first)
        || path.split('/').any(|part| part == "tests")
        || path.ends_with("/tests.rs")
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The end of the literal that starts at `at`, if one does. `'a` of a lifetime is none.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let after_word = at > 0 && is_word(bytes[at - 1]) && bytes[at - 1] != b'b';
    let quoted = |from: usize, quote: u8| {
        let mut end = from;
        while end < bytes.len() && bytes[end] != quote {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        (end + 1).min(bytes.len())
    };
    match bytes[at] {
        b'"' => Some(quoted(at + 1, b'"')),
        b'\'' if bytes.get(at + 1) == Some(&b'\\') => Some(quoted(at + 1, b'\'')),
        b'\'' if bytes.get(at + 2) == Some(&b'\'') => Some(at + 3),
        b'r' if !after_word => {
            let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
            if bytes.get(at + 1 + hashes) != Some(&b'"') {
                return None;
            }
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let from = at + 2 + hashes;
            let len = bytes[from..].windows(close.len()).position(|part| part == close)?;
            Some(from + len + close.len())
        }
        _ => None,
    }
}

/// The end of the comment that starts at `at`, if one does. Block comments nest.
fn comment_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let len = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return Some(at + len);
    }
    if !rest.starts_with(b"/*") {
        return None;
    }
    let (mut depth, mut end) = (0, at);
    while end < bytes.len() {
        match &bytes[end..bytes.len().min(end + 2)] {
            b"/*" => (depth, end) = (depth + 1, end + 2),
            b"*/" => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            break;
        }
    }
    Some(end)
}

fn blank(bytes: &mut [u8], range: Range<usize>) {
    for byte in &mut bytes[range] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn blank_prose(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        if let Some(end) = comment_end(bytes, at) {
            blank(&mut code, at..end);
            at = end;
        } else if let Some(end) = literal_end(bytes, at) {
            blank(&mut code, at + 1..end.saturating_sub(1).max(at + 1));
            at = end;
        } else {
            at += 1;
        }
    }
    code.iter().map(|byte| char::from(*byte)).collect()
}

/// The first byte behind the item that starts at `at`: its body's closing brace or its semicolon.
pub(crate) fn item_end(code: &[u8], at: usize) -> (usize, usize) {
    let (mut depth, mut round, mut body) = (0_i32, 0_i32, at);
    for (index, byte) in code.iter().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => round += 1,
            b')' | b']' => round -= 1,
            b'{' => {
                if depth == 0 {
                    body = index;
                }
                depth += 1;
            }
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return (body, index + 1);
                }
            }
            b';' if depth == 0 && round == 0 => return (index, index + 1),
            _ => {}
        }
    }
    (body, code.len())
}

fn blank_tests(code: &str) -> String {
    let mut bytes = code.as_bytes().to_vec();
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let (_, end) = item_end(code.as_bytes(), at);
        blank(&mut bytes, at..end);
    }
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Where `word` stands as a word of its own.
pub(crate) fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let free = |at: &usize| {
        let end = at + word.len();
        let open = *at == 0 || !is_word(bytes[at - 1]);
        open && !bytes.get(end).copied().is_some_and(is_word)
    };
    code.match_indices(word).map(|(at, _)| at).filter(free).collect()
}

/// The word that starts at `at`, after blanks.
pub(crate) fn word_at(code: &str, at: usize) -> &str {
    let rest = code[at..].trim_start();
    let len = rest.bytes().take_while(|byte| is_word(*byte)).count();
    &rest[..len]
}

/// The room of a file of the root package, and the module path it stands for.
pub(crate) fn module_of(path: &str) -> Option<(&str, Vec<&str>)> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut parts: Vec<&str> = inner.split('/').collect();
    if parts.len() > 1 && parts.last() == Some(&"mod") {
        parts.pop();
    }
    let room = parts[0];
    if ["lib", "main"].contains(&room) {
        parts.clear();
    }
    Some((room, parts))
}

/// The names a `use` tree or path starting at `at` begins with, two steps deep: `a::b`.
fn heads(code: &str, at: usize) -> Vec<String> {
    let rest = &code[at..];
    if !rest.starts_with('{') {
        let first = word_at(rest, 0);
        let next = rest[first.len()..].strip_prefix("::").map_or("", |rest| word_at(rest, 0));
        return vec![format!("{first}::{next}")];
    }
    let (_, end) = item_end(rest.as_bytes(), 0);
    let mut depth = 0;
    let mut starts = vec![1];
    for (index, byte) in rest.bytes().enumerate().take(end - 1) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => starts.push(index + 1),
            _ => {}
        }
    }
    let skip = |from: usize| rest[from..].len() - rest[from..].trim_start().len();
    starts.into_iter().flat_map(|from| heads(rest, from + skip(from))).collect()
}

/// What the code behind each `root::` names.
pub(crate) fn named(code: &str, root: &str) -> Vec<(usize, String)> {
    let bytes = code.as_bytes();
    let mut all = Vec::new();
    for at in words(code, root) {
        let end = at + root.len();
        // A longer path, such as `super::vhd::x` or `<T>::x`, is judged by its first word.
        let inner = at > 2
            && &bytes[at - 2..at] == b"::"
            && (is_word(bytes[at - 3]) || bytes[at - 3] == b'>');
        if !inner && code[end..].starts_with("::") {
            all.extend(heads(code, end + 2).into_iter().map(|name| (at, name)));
        }
    }
    all
}

/// Names in the root package that the file uses: `crate::x`, and `super::x` where it leaves a room.
pub(crate) fn rooms_named(code: &str, module: &[&str]) -> Vec<(usize, String)> {
    let mut all = named(code, "crate");
    all.extend(named(code, "orlop"));
    let climb = "super::".repeat(module.len().max(1));
    for (at, _) in code.match_indices(&climb) {
        if at == 0 || !is_word(code.as_bytes()[at - 1]) {
            all.extend(heads(code, at + climb.len()).into_iter().map(|name| (at, name)));
        }
    }
    all
}
