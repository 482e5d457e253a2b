//! As much of protobuf's wire format as a `google.protobuf.Struct` takes.

use attache_core::MetadataValue;

/// A `Struct` with one field.
pub(crate) fn one_field(key: &str, value: &MetadataValue) -> Vec<u8> {
    let mut out = Vec::new();
    field(&mut out, key, value);
    out
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
    bytes(&mut entry, 2, &encoded(value));
    bytes(out, 1, &entry);
}

/// A `Value`.
fn encoded(value: &MetadataValue) -> Vec<u8> {
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
            list.iter().for_each(|value| bytes(&mut inner, 1, &encoded(value)));
            bytes(&mut out, 6, &inner);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
