//! For hosts: metadata values in protobuf's wire format, in which Envoy takes and gives them whole.

use std::collections::BTreeMap;

use crate::metadata::MetadataValue;

/// A `google.protobuf.Struct` with one field.
pub fn one_field(key: &str, value: &MetadataValue) -> Vec<u8> {
    let mut out = Vec::new();
    field(&mut out, key, value);
    out
}

/// How deep what is decoded may be nested: deeper than Envoy itself takes.
const DEPTH: usize = 200;

/// A `google.protobuf.Value` from its wire format, or `None` if it is none. Texts that are not UTF-8 are
/// replaced, what protobuf leaves out is null or empty, and of a field that is there twice the last
/// counts.
///
/// ```
/// use attache_core::{MetadataValue, protobuf};
///
/// let value: MetadataValue = vec!["a", "b"].into();
/// assert_eq!(protobuf::decode(&protobuf::encode(&value)), Some(value));
/// ```
pub fn decode(value: &[u8]) -> Option<MetadataValue> {
    value_of(value, DEPTH)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, number: u8, wire: u8) {
    out.push(number << 3 | wire);
}

fn bytes(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    tag(out, number, BYTES);
    varint(out, value.len());
    out.extend_from_slice(value);
}

/// `Struct.fields` is a map: field 1, entries of key (1) and value (2).
fn field(out: &mut Vec<u8>, key: &str, value: &MetadataValue) {
    let mut entry = Vec::new();
    bytes(&mut entry, 1, key.as_bytes());
    bytes(&mut entry, 2, &encode(value));
    bytes(out, 1, &entry);
}

/// A `google.protobuf.Value`.
pub fn encode(value: &MetadataValue) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        MetadataValue::Null => {
            tag(&mut out, 1, VARINT);
            out.push(0);
        }
        MetadataValue::Number(number) => {
            tag(&mut out, 2, FIXED64);
            out.extend_from_slice(&number.to_le_bytes());
        }
        MetadataValue::Text(text) => bytes(&mut out, 3, text.as_bytes()),
        MetadataValue::Flag(flag) => {
            tag(&mut out, 4, VARINT);
            out.push(u8::from(*flag));
        }
        MetadataValue::Struct(fields) => {
            let mut inner = Vec::new();
            fields.iter().for_each(|(key, value)| field(&mut inner, key, value));
            bytes(&mut out, 5, &inner);
        }
        MetadataValue::List(list) => {
            let mut inner = Vec::new();
            list.iter().for_each(|value| bytes(&mut inner, 1, &encode(value)));
            bytes(&mut out, 6, &inner);
        }
    }
    out
}

/// The value of a field.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take<'a>(from: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(bytes)?;
    *from = rest;
    Some(taken)
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(from, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_field<'a>(from: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = take_varint(from)?;
    let field = match u8::try_from(tag & 7).ok()? {
        VARINT => Field::Number(take_varint(from)?),
        FIXED64 => Field::Number(u64::from_le_bytes(take(from, 8)?.try_into().ok()?)),
        BYTES => {
            let length = usize::try_from(take_varint(from)?).ok()?;
            Field::Bytes(take(from, length)?)
        }
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn value_of(mut from: &[u8], depth: usize) -> Option<MetadataValue> {
    let depth = depth.checked_sub(1)?;
    let mut value = MetadataValue::Null;
    while !from.is_empty() {
        value = match take_field(&mut from)? {
            (1, Field::Number(_)) => MetadataValue::Null,
            (2, Field::Number(bits)) => MetadataValue::Number(f64::from_bits(bits)),
            (3, Field::Bytes(text)) => MetadataValue::Text(text_of(text)),
            (4, Field::Number(flag)) => MetadataValue::Flag(flag != 0),
            (5, Field::Bytes(fields)) => MetadataValue::Struct(fields_of(fields, depth)?),
            (6, Field::Bytes(list)) => MetadataValue::List(list_of(list, depth)?),
            _ => return None,
        };
    }
    Some(value)
}

fn fields_of(mut from: &[u8], depth: usize) -> Option<BTreeMap<String, MetadataValue>> {
    let mut fields = BTreeMap::new();
    while !from.is_empty() {
        let (1, Field::Bytes(mut entry)) = take_field(&mut from)? else { return None };
        let (mut key, mut value) = (String::new(), MetadataValue::Null);
        while !entry.is_empty() {
            match take_field(&mut entry)? {
                (1, Field::Bytes(text)) => key = text_of(text),
                (2, Field::Bytes(bytes)) => value = value_of(bytes, depth)?,
                _ => return None,
            }
        }
        fields.insert(key, value);
    }
    Some(fields)
}

fn list_of(mut from: &[u8], depth: usize) -> Option<Vec<MetadataValue>> {
    let mut list = Vec::new();
    while !from.is_empty() {
        let (1, Field::Bytes(value)) = take_field(&mut from)? else { return None };
        list.push(value_of(value, depth)?);
    }
    Some(list)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let json = r#"{"a":[1.5,-0.0,true,false,null,"x",""],"b":{},"c":[],"d":{"e":[{"f":"g"}]}}"#;
        let value: MetadataValue = serde_json::from_str(json).unwrap();
        assert_eq!(decode(&encode(&value)), Some(value));
        assert_eq!(decode(&[]), Some(MetadataValue::Null));
        let infinite = MetadataValue::Number(f64::INFINITY);
        assert_eq!(decode(&encode(&infinite)), Some(infinite));
    }

    #[test]
    fn what_is_no_value_is_none() {
        let whole = encode(&vec!["abc", "d"].into());
        for end in 1..whole.len() {
            assert_eq!(decode(&whole[..end]), None, "{end}");
        }
        // An unknown field, an unknown wire type, a number without an end, a length beyond it.
        for bad in [&[0x3a, 0][..], &[0x0b], &[0x08, 0xff], &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert_eq!(decode(bad), None);
        }
        let mut deep = MetadataValue::Null;
        for _ in 0..DEPTH {
            deep = MetadataValue::List(vec![deep]);
        }
        assert_eq!(decode(&encode(&deep)), None);
    }

    #[test]
    fn values_are_written_as_protobuf_writes_them() {
        // printf 'fields {key: "k" value {..}}' | protoc --encode=google.protobuf.Struct
        let with = |value: &[u8]| {
            let mut entry = vec![0x0a, 1, b'k', 0x12, value.len() as u8];
            entry.extend_from_slice(value);
            let mut all = vec![0x0a, entry.len() as u8];
            all.extend_from_slice(&entry);
            all
        };
        let one = |value: MetadataValue| one_field("k", &value);
        assert_eq!(one(MetadataValue::Null), with(&[0x08, 0]));
        assert_eq!(one(1.0.into()), with(&[0x11, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]));
        assert_eq!(one("ab".into()), with(&[0x1a, 2, b'a', b'b']));
        assert_eq!(one(true.into()), with(&[0x20, 1]));
        assert_eq!(
            one(vec!["a", "b"].into()),
            with(&[0x32, 10, 0x0a, 3, 0x1a, 1, b'a', 0x0a, 3, 0x1a, 1, b'b'])
        );
        let fields = [("x".to_owned(), MetadataValue::from(false))].into();
        assert_eq!(
            one(MetadataValue::Struct(fields)),
            with(&[0x2a, 9, 0x0a, 7, 0x0a, 1, b'x', 0x12, 2, 0x20, 0])
        );
        // A length of two bytes.
        assert_eq!(one("x".repeat(200).as_str().into())[..2], [0x0a, 0xd1]);
    }
}
