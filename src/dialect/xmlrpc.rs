//! XML-RPC: method calls and responses as values, and back, in the shapes that xapi and Python's
//! `xmlrpc.client` write and read.
//!
//! Refuses types it does not know, members named twice, and anything beside what the form has.

use std::collections::BTreeMap;

use super::base64;
use super::xml::{self, Document, Element, XmlError, escape, shown};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Nil,
    Flag(bool),
    Int(i64),
    Double(f64),
    Text(String),
    /// A date and time, in one of the forms that are sent.
    Time(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    /// Text as a value.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A structure.
    pub(super) fn map<const N: usize>(members: [(&str, Value); N]) -> Self {
        Self::Map(members.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// What it is, for people.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Flag(_) => "a boolean",
            Self::Int(_) => "a whole number",
            Self::Double(_) => "a double",
            Self::Text(_) => "a string",
            Self::Time(_) => "a date",
            Self::Bytes(_) => "base64",
            Self::List(_) => "an array",
            Self::Map(_) => "a struct",
        }
    }
}

/// A method call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) params: Vec<Value>,
}

/// A method response.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Response {
    Value(Value),
    Fault(i32, String),
}

/// Reads a call.
///
/// # Errors
/// Where it is none.
pub(super) fn read_call(bytes: &[u8]) -> Result<Call, XmlError> {
    let document = xml::parse(bytes)?;
    let root = named(&document, &document.root, "methodCall")?;
    let [name, params @ ..] = &root.children[..] else {
        return Err(document.wrong(root, "<methodName> is missing"));
    };
    let name = leaf(&document, named(&document, name, "methodName")?)?.trim().to_owned();
    let params = match params {
        [] => Vec::new(),
        [params] => {
            let params = named(&document, params, "params")?;
            params
                .children
                .iter()
                .map(|param| param_of(&document, param))
                .collect::<Result<_, _>>()?
        }
        [_, other, ..] => return Err(document.wrong(other, "nothing may follow <params>")),
    };
    Ok(Call { name, params })
}

/// Reads a response.
///
/// # Errors
/// Where it is none.
pub(super) fn read_response(bytes: &[u8]) -> Result<Response, XmlError> {
    let document = xml::parse(bytes)?;
    let root = named(&document, &document.root, "methodResponse")?;
    let inner = only_child(&document, root)?;
    if inner.name == "params" {
        return param_of(&document, only_child(&document, inner)?).map(Response::Value);
    }
    let value = only_child(&document, named(&document, inner, "fault")?)?;
    let Value::Map(members) = value_of(&document, value)? else {
        return Err(document.wrong(value, "a fault holds a struct"));
    };
    match (members.get("faultCode"), members.get("faultString")) {
        (Some(Value::Int(code)), Some(Value::Text(text))) => {
            let code = i32::try_from(*code);
            let code = code.map_err(|_| document.wrong(value, "the faultCode is too large"))?;
            Ok(Response::Fault(code, text.clone()))
        }
        _ => Err(document.wrong(value, "a fault has a faultCode and a faultString")),
    }
}

fn named<'e>(
    document: &Document<'_>,
    element: &'e Element,
    name: &str,
) -> Result<&'e Element, XmlError> {
    if element.name == name {
        return Ok(element);
    }
    let problem = format!("<{name}> is expected here, not <{}>", shown(&element.name));
    Err(document.wrong(element, problem))
}

/// The text of an element without children.
fn leaf<'e>(document: &Document<'_>, element: &'e Element) -> Result<&'e str, XmlError> {
    match element.children.first() {
        None => Ok(&element.text),
        Some(child) => {
            let problem = format!("<{}> holds text only", shown(&element.name));
            Err(document.wrong(child, problem))
        }
    }
}

/// The children of an element without text.
fn children<'e>(document: &Document<'_>, element: &'e Element) -> Result<&'e [Element], XmlError> {
    if element.text.trim().is_empty() {
        return Ok(&element.children);
    }
    let (name, text) = (shown(&element.name), shown(element.text.trim()));
    Err(document.wrong(element, format!("<{name}> holds text where it may not: {text:?}")))
}

fn only_child<'e>(document: &Document<'_>, element: &'e Element) -> Result<&'e Element, XmlError> {
    match children(document, element)? {
        [child] => Ok(child),
        all => {
            let (name, count) = (shown(&element.name), all.len());
            Err(document.wrong(element, format!("<{name}> holds one element, not {count}")))
        }
    }
}

fn param_of(document: &Document<'_>, param: &Element) -> Result<Value, XmlError> {
    value_of(document, only_child(document, named(document, param, "param")?)?)
}

fn value_of(document: &Document<'_>, value: &Element) -> Result<Value, XmlError> {
    named(document, value, "value")?;
    // Text without a type is a string, as it stands.
    if value.children.is_empty() {
        return Ok(Value::Text(value.text.clone()));
    }
    let typed = only_child(document, value)?;
    let text = || leaf(document, typed).map(str::trim);
    let wrong = |what: &str| {
        let problem = format!("{:?} is {what}", shown(typed.text.trim()));
        Err(document.wrong(typed, problem))
    };
    Ok(match typed.name.as_str() {
        "string" => Value::Text(leaf(document, typed)?.to_owned()),
        "i4" | "int" | "i8" | "ex:i8" => match text()?.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => return wrong("no whole number of 64 bits"),
        },
        "boolean" => match text()?.to_ascii_lowercase().as_str() {
            "1" | "true" => Value::Flag(true),
            "0" | "false" => Value::Flag(false),
            _ => return wrong("neither 0 nor 1"),
        },
        "double" => match text()?.parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Double(number),
            _ => return wrong("no number"),
        },
        "dateTime.iso8601" => match text()? {
            time if is_time(time) => Value::Time(time.to_owned()),
            _ => return wrong("no date and time such as 20260131T10:00:00Z"),
        },
        "base64" => match base64::decode(text()?) {
            Some(bytes) => Value::Bytes(bytes),
            None => return wrong("no base64"),
        },
        "nil" | "ex:nil" => match text()? {
            "" => Value::Nil,
            _ => return wrong("more than nil"),
        },
        "array" => {
            let data = named(document, only_child(document, typed)?, "data")?;
            let values = children(document, data)?.iter();
            Value::List(values.map(|value| value_of(document, value)).collect::<Result<_, _>>()?)
        }
        "struct" => struct_of(document, typed)?,
        other => {
            let problem = format!("<{}> is no type of XML-RPC", shown(other));
            return Err(document.wrong(typed, problem));
        }
    })
}

fn struct_of(document: &Document<'_>, typed: &Element) -> Result<Value, XmlError> {
    let mut members = BTreeMap::new();
    for member in children(document, typed)? {
        let parts = children(document, named(document, member, "member")?)?;
        let [name, value] = parts else {
            return Err(document.wrong(member, "a <member> holds a <name> and a <value>"));
        };
        let name = leaf(document, named(document, name, "name")?)?;
        if members.insert(name.to_owned(), value_of(document, value)?).is_some() {
            let problem = format!("the member {:?} is there twice", shown(name));
            return Err(document.wrong(member, problem));
        }
    }
    Ok(Value::Map(members))
}

/// Whether it is a date and time as one of xapi, OCaml or Python writes it: with or without
/// hyphens, fractions of a second, and a zone.
fn is_time(text: &str) -> bool {
    // Hyphens are only taken where they stand in a date.
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time),
        None => return false,
    };
    let parts: Vec<&str> = date.split('-').collect();
    let date: String = match parts[..] {
        [date] => date.to_owned(),
        [year, month, day] if [year.len(), month.len(), day.len()] == [4, 2, 2] => parts.concat(),
        _ => return false,
    };
    let within = |text: &str, from: u32, to: u32| {
        let digits = !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit());
        digits && text.parse().is_ok_and(|number: u32| (from..=to).contains(&number))
    };
    let sound_date = date.len() == 8
        && date.is_ascii()
        && within(&date[..4], 0, 9999)
        && within(&date[4..6], 1, 12)
        && within(&date[6..], 1, 31);
    let (time, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => time.split_at(at),
        None => (time, ""),
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock: Vec<&str> = time.split(':').collect();
    let sound_time = match clock[..] {
        [hour, minute, second] => {
            within(hour, 0, 24) && within(minute, 0, 59) && within(second, 0, 60)
        }
        _ => false,
    };
    let sound_zone = match zone.split_at_checked(1) {
        None | Some(("Z", "")) => true,
        Some(("+" | "-", rest)) => {
            let digits = rest.replacen(':', "", 1);
            [2, 4].contains(&digits.len()) && digits.bytes().all(|letter| letter.is_ascii_digit())
        }
        _ => false,
    };
    sound_date && sound_time && sound_zone && fraction.bytes().all(|letter| letter.is_ascii_digit())
}

/// A call as text.
pub(super) fn write_call(name: &str, params: &[Value]) -> Vec<u8> {
    let mut out = "<?xml version='1.0'?>\n<methodCall>\n<methodName>".to_owned();
    escape(&mut out, name);
    out.push_str("</methodName>\n<params>\n");
    for param in params {
        out.push_str("<param>\n");
        write_value(&mut out, param);
        out.push_str("</param>\n");
    }
    out.push_str("</params>\n</methodCall>\n");
    out.into_bytes()
}

/// A response as text.
pub(super) fn write_response(response: &Response) -> Vec<u8> {
    let mut out = "<?xml version='1.0'?>\n<methodResponse>\n".to_owned();
    match response {
        Response::Value(value) => {
            out.push_str("<params>\n<param>\n");
            write_value(&mut out, value);
            out.push_str("</param>\n</params>\n");
        }
        Response::Fault(code, text) => {
            let code = Value::Int(i64::from(*code));
            let fault = [("faultCode", code), ("faultString", Value::text(text))];
            out.push_str("<fault>\n");
            write_value(&mut out, &Value::map(fault));
            out.push_str("</fault>\n");
        }
    }
    out.push_str("</methodResponse>\n");
    out.into_bytes()
}

fn write_value(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Flag(flag) => xml::element(out, "boolean", u8::from(*flag)),
        Value::Int(number) if i32::try_from(*number).is_ok() => xml::element(out, "int", number),
        Value::Int(number) => xml::element(out, "i8", number),
        Value::Double(number) => xml::element(out, "double", number),
        Value::Text(text) => xml::element(out, "string", text),
        Value::Time(time) => xml::element(out, "dateTime.iso8601", time),
        Value::Bytes(bytes) => xml::element(out, "base64", base64::encode(bytes)),
        Value::List(values) => {
            out.push_str("<array><data>\n");
            for value in values {
                write_value(out, value);
            }
            out.push_str("</data></array>");
        }
        Value::Map(members) => {
            out.push_str("<struct>\n");
            for (name, value) in members {
                out.push_str("<member>\n");
                xml::element(out, "name", name);
                out.push('\n');
                write_value(out, value);
                out.push_str("</member>\n");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
    // Python's writer breaks the line after everything else, and xapi has read no other.
    if *value != Value::Nil {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Response, Value, is_time, read_call, read_response, write_call};
    use super::{write_response, xml};

    fn value(text: &str) -> Result<Value, xml::XmlError> {
        let call = format!(
            "<methodCall><methodName>m</methodName><params><param>{text}</param></params>\
             </methodCall>"
        );
        read_call(call.as_bytes()).map(|call| call.params[0].clone())
    }

    #[test]
    fn every_type_is_read_in_the_forms_that_are_sent() {
        let text = |text: &str| Ok(Value::text(text));
        assert_eq!(value("<value/>"), text(""));
        assert_eq!(value("<value></value>"), text(""));
        assert_eq!(value("<value> a &amp; b </value>"), text(" a & b "));
        assert_eq!(value("<value><string/></value>"), text(""));
        assert_eq!(value("<value>\n<string> a </string>\n</value>"), text(" a "));
        assert_eq!(value("<value><![CDATA[<a>]]></value>"), text("<a>"));
        for tag in ["i4", "int", "i8", "ex:i8"] {
            let number = value(&format!("<value><{tag}> -12 </{tag}></value>"));
            assert_eq!(number, Ok(Value::Int(-12)));
        }
        assert_eq!(value("<value><i8>9223372036854775807</i8></value>"), Ok(Value::Int(i64::MAX)));
        for (word, flag) in [("1", true), ("true", true), ("0", false), ("False", false)] {
            let read = value(&format!("<value><boolean>{word}</boolean></value>"));
            assert_eq!(read, Ok(Value::Flag(flag)));
        }
        assert_eq!(value("<value><double>-1.5e3</double></value>"), Ok(Value::Double(-1500.0)));
        let time = value("<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>");
        assert_eq!(time, Ok(Value::Time("19700101T00:00:00Z".to_owned())));
        assert_eq!(value("<value><base64>Zm9v</base64></value>"), Ok(Value::Bytes(b"foo".into())));
        for nil in ["<nil/>", "<nil></nil>", "<ex:nil/>"] {
            assert_eq!(value(&format!("<value>{nil}</value>")), Ok(Value::Nil));
        }
        assert_eq!(value("<value><array><data/></array></value>"), Ok(Value::List(vec![])));
        assert_eq!(value("<value><struct/></value>"), Ok(Value::map([])));
        let nested = "<value><struct>\n<member><name>a</name><value><array><data>\
            <value>1</value><value><nil/></value></data></array></value></member></struct></value>";
        let list = Value::List(vec![Value::text("1"), Value::Nil]);
        assert_eq!(value(nested), Ok(Value::map([("a", list)])));
    }

    #[test]
    fn dates_are_taken_in_the_forms_of_xapi_ocaml_and_python() {
        for time in [
            "19700101T00:00:00Z",
            "20260131T23:59:60",
            "2026-01-31T10:00:00Z",
            "20260131T10:00:00.250Z",
            "20260131T10:00:00+01:00",
            "20260131T10:00:00-0130",
        ] {
            assert!(is_time(time), "{time}");
        }
        for odd in [
            "",
            "now",
            "20260131",
            "20261301T00:00:00",
            "2026-1-1T00:00:00",
            "20260131T10:00",
            "20260131T10:00:00Zz",
            "20260131T+1:00:00",
            "\u{e9}2601311T10:00:00",
        ] {
            assert!(!is_time(odd), "{odd}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for odd in [
            "<value><int></int></value>",
            "<value><int>1.5</int></value>",
            "<value><int>9223372036854775808</int></value>",
            "<value><boolean>2</boolean></value>",
            "<value><double>inf</double></value>",
            "<value><double>x</double></value>",
            "<value><base64>*</base64></value>",
            "<value><nil>1</nil></value>",
            "<value><colour>red</colour></value>",
            "<value>a<int>1</int></value>",
            "<value><int>1</int><int>1</int></value>",
            "<value><int><b/></int></value>",
            "<value><array/></value>",
            "<value><array><data>x</data></array></value>",
            "<value><struct><member><name>a</name></member></struct></value>",
            "<value><struct><member><value/><name>a</name></member></struct></value>",
            "<value><struct><member><name>a</name><value/></member>\
             <member><name>a</name><value/></member></struct></value>",
            "<int>1</int>",
            "<value/><value/>",
        ] {
            assert!(value(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for odd in [
            "<methodCall/>",
            "<methodResponse/>",
            "<methodCall><params/></methodCall>",
            "<methodCall><methodName>a</methodName><param/></methodCall>",
            "<methodCall><methodName>a</methodName><params/><params/></methodCall>",
            "<methodCall><methodName>a</methodName><params><value/></params></methodCall>",
        ] {
            assert!(read_call(odd.as_bytes()).is_err(), "{odd}");
        }
        let bare = read_call(b"<methodCall><methodName>a</methodName></methodCall>");
        assert_eq!(bare, Ok(Call { name: "a".to_owned(), params: vec![] }));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = Value::map([
            ("flag", Value::Flag(true)),
            ("int", Value::Int(-5)),
            ("long", Value::Int(1 << 40)),
            ("double", Value::Double(0.25)),
            ("text", Value::text(" <a> & \r\n\"b\" ")),
            ("time", Value::Time("19700101T00:00:00Z".to_owned())),
            ("bytes", Value::Bytes(vec![0, 255])),
            ("list", Value::List(vec![Value::Nil, Value::map([])])),
        ]);
        let call = read_call(&write_call("m", &[all.clone(), Value::Nil]));
        assert_eq!(call, Ok(Call { name: "m".to_owned(), params: vec![all.clone(), Value::Nil] }));
        for response in [Response::Value(all), Response::Fault(-3, "a & b".to_owned())] {
            assert_eq!(read_response(&write_response(&response)), Ok(response));
        }
    }

    #[test]
    fn responses_have_the_bytes_that_xapi_reads() {
        let nil = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n\
            <value><nil/></value></param>\n</params>\n</methodResponse>\n";
        assert_eq!(write_response(&Response::Value(Value::Nil)), nil.as_bytes());
        let vdi = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value><struct>\n\
            <member>\n<name>location</name>\n<value><string>a</string></value>\n</member>\n\
            <member>\n<name>uuid</name>\n<value><string>a</string></value>\n</member>\n\
            </struct></value>\n</param>\n</params>\n</methodResponse>\n";
        let value = Value::map([("location", Value::text("a")), ("uuid", Value::text("a"))]);
        assert_eq!(write_response(&Response::Value(value)), vdi.as_bytes());
    }
}
