//! A deserializer that reads JSON the way Go does.
//!
//! Wraps any self-describing deserializer. Names of struct fields match without regard to ASCII case; `null` reads as
//! the zero value of whatever is asked for. Everything else is passed on.

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// The wrapping deserializer.
///
/// Newtype structs are handed to the inner deserializer as they are, since `serde_json` passes raw values that way;
/// our own newtypes are `#[serde(transparent)]` and never come through there.
pub(super) struct Lenient<D>(pub(super) D);

/// What a type asked its deserializer for; widths of numbers do not matter to JSON.
#[derive(Clone, Copy)]
enum Want {
    Any,
    Bool,
    Signed,
    Unsigned,
    Float,
    Char,
    Str,
    Bytes,
    Unit,
    Seq,
    Map,
    Struct(&'static str, &'static [&'static str]),
    Identifier,
    Ignored,
}

impl Want {
    /// Repeats the question to `from`.
    fn ask<'de, D: Deserializer<'de>, V: Visitor<'de>>(self, from: D, visitor: V) -> Result<V::Value, D::Error> {
        match self {
            Self::Any => from.deserialize_any(visitor),
            Self::Bool => from.deserialize_bool(visitor),
            Self::Signed => from.deserialize_i64(visitor),
            Self::Unsigned => from.deserialize_u64(visitor),
            Self::Float => from.deserialize_f64(visitor),
            Self::Char => from.deserialize_char(visitor),
            Self::Str => from.deserialize_str(visitor),
            Self::Bytes => from.deserialize_bytes(visitor),
            Self::Unit => from.deserialize_unit(visitor),
            Self::Seq => from.deserialize_seq(visitor),
            Self::Map => from.deserialize_map(visitor),
            Self::Struct(name, fields) => from.deserialize_struct(name, fields, visitor),
            Self::Identifier => from.deserialize_identifier(visitor),
            Self::Ignored => from.deserialize_ignored_any(visitor),
        }
    }

    /// Answers the question with the zero value, as Go does for `null`.
    fn zero<'de, E: Error, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        match self {
            Self::Any | Self::Unit | Self::Ignored => visitor.visit_unit(),
            Self::Bool => visitor.visit_bool(false),
            Self::Signed => visitor.visit_i64(0),
            Self::Unsigned => visitor.visit_u64(0),
            Self::Float => visitor.visit_f64(0.0),
            Self::Char | Self::Str | Self::Identifier => visitor.visit_borrowed_str(""),
            Self::Bytes => visitor.visit_borrowed_bytes(&[]),
            Self::Seq => visitor.visit_seq(Nothing(PhantomData)),
            Self::Map | Self::Struct(..) => visitor.visit_map(Nothing(PhantomData)),
        }
    }
}

/// A list and an object without entries.
struct Nothing<E>(PhantomData<E>);

impl<'de, E: Error> SeqAccess<'de> for Nothing<E> {
    type Error = E;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _seed: T) -> Result<Option<T::Value>, E> {
        Ok(None)
    }
}

impl<'de, E: Error> MapAccess<'de> for Nothing<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _seed: K) -> Result<Option<K::Value>, E> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _seed: V) -> Result<V::Value, E> {
        Err(E::custom("an object without entries has no value"))
    }
}

/// Looks whether the value is `null` before the question is repeated.
struct NullOr<V> {
    visitor: V,
    want: Want,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NullOr<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.want.zero(self.visitor)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.want.zero(self.visitor)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.want.ask(from, Wrapped { visitor: self.visitor, want: self.want })
    }
}

/// Passes values on, wrapping everything that holds further values.
struct Wrapped<V> {
    visitor: V,
    want: Want,
}

macro_rules! pass_on {
    ($($method:ident: $kind:ty),* $(,)?) => {
        $(fn $method<E: Error>(self, value: $kind) -> Result<V::Value, E> { self.visitor.$method(value) })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    pass_on! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_char: char,
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Lenient(from))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Lenient(from))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        if let Want::Struct(..) = self.want {
            // Derived code would take the entries as fields by position.
            return Err(A::Error::invalid_type(de::Unexpected::Seq, &"an object"));
        }
        self.visitor.visit_seq(Entries(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let fields = if let Want::Struct(_, fields) = self.want { Some(fields) } else { None };
        self.visitor.visit_map(Pairs { entries, fields })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, entry: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(entry)
    }
}

/// Wraps what a seed reads.
struct Inside<T>(T);

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Inside<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T::Value, D::Error> {
        self.0.deserialize(Lenient(from))
    }
}

/// Entries of a list.
struct Entries<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Inside(seed))
    }
}

/// Entries of an object; `fields` are the names to match when it is a struct.
struct Pairs<A> {
    entries: A,
    fields: Option<&'static [&'static str]>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Pairs<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        match self.fields {
            Some(fields) => self.entries.next_key_seed(FieldName { seed, fields }),
            None => self.entries.next_key_seed(seed),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.entries.next_value_seed(Inside(seed))
    }
}

/// Reads a name and gives the struct the spelling that it knows.
struct FieldName<K> {
    seed: K,
    fields: &'static [&'static str],
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for FieldName<K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<K::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for FieldName<K> {
    type Value = K::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<K::Value, E> {
        let known = self.fields.iter().find(|field| field.eq_ignore_ascii_case(name)).copied().unwrap_or("");
        self.seed.deserialize(de::value::BorrowedStrDeserializer::new(known))
    }
}

macro_rules! ask {
    ($($method:ident => $want:expr),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.deserialize_option(NullOr { visitor, want: $want })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
    type Error = D::Error;

    ask! {
        deserialize_any => Want::Any,
        deserialize_bool => Want::Bool,
        deserialize_i8 => Want::Signed,
        deserialize_i16 => Want::Signed,
        deserialize_i32 => Want::Signed,
        deserialize_i64 => Want::Signed,
        deserialize_u8 => Want::Unsigned,
        deserialize_u16 => Want::Unsigned,
        deserialize_u32 => Want::Unsigned,
        deserialize_u64 => Want::Unsigned,
        deserialize_f32 => Want::Float,
        deserialize_f64 => Want::Float,
        deserialize_char => Want::Char,
        deserialize_str => Want::Str,
        deserialize_string => Want::Str,
        deserialize_bytes => Want::Bytes,
        deserialize_byte_buf => Want::Bytes,
        deserialize_unit => Want::Unit,
        deserialize_seq => Want::Seq,
        deserialize_map => Want::Map,
        deserialize_identifier => Want::Identifier,
        deserialize_ignored_any => Want::Ignored,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Wrapped { visitor, want: Want::Any })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(NullOr { visitor, want: Want::Struct(name, fields) })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }
}
