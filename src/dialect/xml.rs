//! XML documents as small trees, and text as XML.
//!
//! Every refusal says where. Refuses document types, so that no entity can expand into anything,
//! encodings other than UTF-8, characters that XML 1.0 does not have, and what is deep or wide.

use std::fmt::Write;

use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

/// Elements inside one another.
const DEPTH_MAX: usize = 32;
/// Elements of a document.
const ELEMENTS_MAX: usize = 16 << 10;
/// Characters of somebody else's text that a message repeats.
const SHOWN_MAX: usize = 48;

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub(super) struct XmlError {
    /// Counted from one.
    line: usize,
    /// Characters, counted from one.
    column: usize,
    /// What is wrong there.
    problem: String,
}

impl XmlError {
    fn new(document: &str, at: usize, problem: impl Into<String>) -> Self {
        let before = document.get(..at).unwrap_or(document);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        Self { line, column: before[start..].chars().count() + 1, problem: problem.into() }
    }
}

/// An element: its text is what stands directly in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Element>,
    /// Where it begins, in bytes.
    at: usize,
}

/// A document that was read.
#[derive(Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    pub(super) root: Element,
}

impl Document<'_> {
    /// A complaint about an element.
    pub(super) fn wrong(&self, element: &Element, problem: impl Into<String>) -> XmlError {
        XmlError::new(self.text, element.at, problem)
    }
}

/// Reads a document.
///
/// # Errors
/// Where it is no XML, or more than is taken.
pub(super) fn parse(bytes: &[u8]) -> Result<Document<'_>, XmlError> {
    let bytes = bytes.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let sound = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let sound = String::from_utf8_lossy(sound);
        XmlError::new(&sound, sound.len(), "it is not UTF-8 from here on")
    })?;
    if let Some((at, odd)) = text.char_indices().find(|(_, letter)| !is_xml(*letter)) {
        let problem = format!("the character U+{:04X} cannot be in XML", u32::from(odd));
        return Err(XmlError::new(text, at, problem));
    }
    let mut tree = Tree { text, open: Vec::new(), root: None, elements: 0 };
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(text.len());
        let event = reader.read_event().map_err(|error| {
            let at = usize::try_from(reader.error_position()).unwrap_or(at);
            XmlError::new(text, at, error.to_string())
        })?;
        if !tree.take(event, at)? {
            break;
        }
    }
    let end = text.len();
    if let Some(open) = tree.open.last() {
        let problem = format!("the document ends inside <{}>", shown(&open.name));
        return Err(XmlError::new(text, end, problem));
    }
    match tree.root {
        Some(root) => Ok(Document { text, root }),
        None => Err(XmlError::new(text, end, "there is no element")),
    }
}

struct Tree<'a> {
    text: &'a str,
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

impl Tree<'_> {
    /// Takes in an event; false at the end.
    fn take(&mut self, event: Event<'_>, at: usize) -> Result<bool, XmlError> {
        let wrong = |problem: &str| Err(XmlError::new(self.text, at, problem));
        match event {
            Event::Start(start) => {
                self.elements += 1;
                if self.open.len() >= DEPTH_MAX {
                    return wrong(&format!("there are more than {DEPTH_MAX} elements in another"));
                }
                if self.elements > ELEMENTS_MAX {
                    return wrong(&format!("there are more than {ELEMENTS_MAX} elements"));
                }
                if self.open.is_empty() && self.root.is_some() {
                    return wrong("something follows after the document's element");
                }
                let name = start.name().as_ref().to_owned();
                self.open.push(Element { name, at, ..Element::default() });
            }
            Event::End(_) => {
                let Some(closed) = self.open.pop() else { return wrong("nothing is open here") };
                match self.open.last_mut() {
                    Some(parent) => parent.children.push(closed),
                    None => self.root = Some(closed),
                }
            }
            Event::Text(text) => return self.say(&text.xml10_content(), at),
            Event::CData(text) => return self.say(&text.xml10_content(), at),
            Event::GeneralRef(reference) => {
                let Some(letter) = letter_of(&reference) else {
                    let name = shown(&reference);
                    return wrong(&format!("&{name}; is unknown: no entities can be declared"));
                };
                return self.say(letter.encode_utf8(&mut [0; 4]), at);
            }
            Event::Decl(declaration) => {
                let encoding = declaration.encoding().and_then(Result::ok);
                let known = |name: &str| {
                    ["utf-8", "utf8", "us-ascii", "ascii"].contains(&&*name.to_ascii_lowercase())
                };
                if encoding.is_some_and(|encoding| !known(&encoding)) {
                    return wrong("the encoding is another than UTF-8");
                }
            }
            Event::DocType(_) => return wrong("a document type is declared, which is not taken"),
            Event::Comment(_) | Event::PI(_) => {}
            Event::Empty(_) => return wrong("an element is empty in an unknown way"),
            Event::Eof => return Ok(false),
        }
        Ok(true)
    }

    fn say(&mut self, text: &str, at: usize) -> Result<bool, XmlError> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => {
                let problem = format!("text outside of any element: {:?}", shown(text.trim()));
                return Err(XmlError::new(self.text, at, problem));
            }
        }
        Ok(true)
    }
}

/// What a reference stands for: a character's number, or one of the five names that XML has.
fn letter_of(reference: &BytesRef<'_>) -> Option<char> {
    if reference.is_char_ref() {
        return reference.resolve_char_ref().ok().flatten().filter(|letter| is_xml(*letter));
    }
    match &**reference {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

/// Whether XML 1.0 has this character.
const fn is_xml(letter: char) -> bool {
    matches!(letter, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

/// The beginning of somebody else's text.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Adds text to a document. What XML does not have becomes U+FFFD.
pub(super) fn escape(out: &mut String, text: &str) {
    let mut rest = 0;
    for (at, letter) in text.char_indices() {
        let written = match letter {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            // A reader makes a newline of it otherwise.
            '\r' => "&#13;",
            letter if is_xml(letter) => continue,
            _ => "\u{FFFD}",
        };
        out.push_str(&text[rest..at]);
        out.push_str(written);
        rest = at + letter.len_utf8();
    }
    out.push_str(&text[rest..]);
}

/// Adds an element that only holds text.
pub(super) fn element(out: &mut String, name: &str, text: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _written = write!(out, "<{name}>");
    escape(out, &text.to_string());
    let _written = write!(out, "</{name}>");
}

#[cfg(test)]
mod tests {
    use super::{DEPTH_MAX, ELEMENTS_MAX, escape, parse};

    fn problem(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn text_is_what_it_was_on_both_sides() {
        for text in ["", " a b ", "<&>\"'", "a\r\nb\n\tc", "\u{e9}\u{1F600}", "]]>"] {
            let mut document = "<a>".to_owned();
            escape(&mut document, text);
            document.push_str("</a>");
            assert_eq!(parse(document.as_bytes()).unwrap().root.text, text);
        }
        let mut out = String::new();
        escape(&mut out, "a\u{0}b\u{FFFE}");
        assert_eq!(out, "a\u{FFFD}b\u{FFFD}");
    }

    #[test]
    fn the_five_names_numbers_and_character_data_are_read() {
        let document = "\u{FEFF}<?xml version='1.0' encoding='UTF-8'?><!-- x --><a>&lt;&gt;&amp;\
            &quot;&apos;&#65;&#x42;<![CDATA[<c>&amp;]]></a>\n";
        assert_eq!(parse(document.as_bytes()).unwrap().root.text, "<>&\"'AB<c>&amp;");
    }

    #[test]
    fn what_is_no_xml_is_refused_with_its_place() {
        assert_eq!(problem("<a>\n <b></a>").split(':').next(), Some("line 2, column 5"));
        assert!(problem("<a>&bomb;</a>").contains("&bomb; is unknown"));
        assert!(problem("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>").contains("document type"));
        assert!(problem("<?xml version='1.0' encoding='UTF-16'?><a/>").contains("encoding"));
        for odd in ["", "a", "<a>", "<a/><b/>", "<a/>x", "</a>", "<a>\u{1}</a>", "<a>&#0;</a>"] {
            assert!(problem(odd).starts_with("line 1, "), "{odd}");
        }
        for odd in ["<a>&#xD800;</a>", "<a>&#x110000;</a>", "<a>&</a>", "<a", "<a>&#1;</a>"] {
            assert!(problem(odd).starts_with("line 1, "), "{odd}");
        }
        let latin = parse(b"<a>\n\xE9</a>").unwrap_err();
        assert_eq!((latin.line, latin.column), (2, 1));
    }

    #[test]
    fn deep_and_wide_documents_are_refused() {
        let deep = |depth| "<a>".repeat(depth) + &"</a>".repeat(depth);
        assert!(parse(deep(DEPTH_MAX).as_bytes()).is_ok());
        assert!(problem(&deep(DEPTH_MAX + 1)).contains("more than 32"));
        let wide = |count| format!("<a>{}</a>", "<b/>".repeat(count));
        assert!(parse(wide(ELEMENTS_MAX - 1).as_bytes()).is_ok());
        assert!(problem(&wide(ELEMENTS_MAX)).contains("more than 16384"));
    }
}
