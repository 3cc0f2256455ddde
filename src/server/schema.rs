//! Schemas of stores: the keys of a collection, and their part of a listing.

use serde_json::{Map, Value};

use super::errors::{ApiError, Result};
use crate::base::clock::Deadline;
use crate::store::record::is_key_byte;
use crate::store::{ListPage, ListQuery, MAX_PAGE, Result as StoreResult, Store};

/// Which records of a store are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// Those with keys that begin so.
    Prefix(String),
    /// The one with this key.
    Key(String),
    /// None.
    Nothing,
}

/// Checks a schema as the platform specifies it, version 1. What it says of content types and of
/// JSON is kept and shown, but records are not measured by it.
pub(super) fn check(schema: &Value) -> Result<()> {
    let schema = object(schema, "The schema")?;
    if schema.get("actorKeyValueStoreSchemaVersion") != Some(&Value::from(1)) {
        return Err(ApiError::invalid_schema(
            "\"actorKeyValueStoreSchemaVersion\" must be 1",
        ));
    }
    texts(schema, "The schema", &["title", "description"])?;
    let Some(collections) = schema.get("collections") else {
        return Err(ApiError::invalid_schema("\"collections\" is missing"));
    };
    for (name, collection) in object(collections, "\"collections\"")? {
        let what = format!("Collection \"{name}\"");
        let collection = object(collection, &what)?;
        texts(
            collection,
            &what,
            &["title", "description", "key", "keyPrefix"],
        )?;
        let keys = [collection.get("key"), collection.get("keyPrefix")];
        let [given] = keys.into_iter().flatten().collect::<Vec<_>>()[..] else {
            return Err(ApiError::invalid_schema(format!(
                "{what} must have either \"key\" or \"keyPrefix\""
            )));
        };
        let text = given.as_str().unwrap_or_default();
        if text.is_empty() || !text.bytes().all(is_key_byte) {
            return Err(ApiError::invalid_schema(format!(
                "{what}: \"{text}\" cannot begin a key"
            )));
        }
        let types = collection.get("contentTypes");
        let listed = types.is_none_or(|types| {
            types
                .as_array()
                .is_some_and(|types| types.iter().all(Value::is_string))
        });
        if !listed {
            return Err(ApiError::invalid_schema(format!(
                "{what}: \"contentTypes\" must be a list of strings"
            )));
        }
    }
    Ok(())
}

/// Finds what the parameters `collection` and `prefix` select, both together if both are given.
pub(super) fn select(
    schema: Option<&Value>,
    collection: Option<&str>,
    prefix: Option<&str>,
) -> Result<Selection> {
    let prefix = prefix.unwrap_or_default();
    let Some(name) = collection else {
        return Ok(Selection::Prefix(prefix.to_owned()));
    };
    let found = schema.and_then(|schema| schema.get("collections")?.get(name));
    let text = |field: &str| found.and_then(|found| found.get(field)?.as_str());
    if let Some(key) = text("key") {
        return Ok(match key.starts_with(prefix) {
            true => Selection::Key(key.to_owned()),
            false => Selection::Nothing,
        });
    }
    let Some(own) = text("keyPrefix") else {
        return Err(ApiError::invalid_collection(name));
    };
    Ok(if own.starts_with(prefix) {
        Selection::Prefix(own.to_owned())
    } else if prefix.starts_with(own) {
        Selection::Prefix(prefix.to_owned())
    } else {
        Selection::Nothing
    })
}

impl Selection {
    /// Lists a page of what is selected.
    pub(super) fn page(
        &self,
        store: &dyn Store,
        after: Option<&str>,
        limit: usize,
        deadline: Deadline,
    ) -> StoreResult<ListPage> {
        let (prefix, limit) = match self {
            Self::Prefix(prefix) => (prefix, limit),
            // Of all keys that begin so, the key itself is the first.
            Self::Key(key) => (key, 1),
            Self::Nothing => return Ok(ListPage::default()),
        };
        let query = ListQuery {
            after: after.map(Into::into),
            limit: Some(limit.min(MAX_PAGE)),
            prefix: Some(prefix.as_str())
                .filter(|prefix| !prefix.is_empty())
                .map(Into::into),
            collection: None,
        };
        let mut page = store.list_page(&query, deadline)?;
        if let Self::Key(key) = self {
            page.items.retain(|item| item.key.as_str() == key);
            page.next = None;
        }
        Ok(page)
    }
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>> {
    value
        .as_object()
        .ok_or_else(|| ApiError::invalid_schema(format!("{what} must be an object")))
}

fn texts(object: &Map<String, Value>, what: &str, fields: &[&str]) -> Result<()> {
    match fields
        .iter()
        .find(|field| object.get(**field).is_some_and(|value| !value.is_string()))
    {
        Some(field) => Err(ApiError::invalid_schema(format!(
            "{what}: \"{field}\" must be a string"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "actorKeyValueStoreSchemaVersion": 1,
            "title": "Records",
            "collections": {
                "images": { "title": "Images", "keyPrefix": "image-", "contentTypes": ["image/png"] },
                "input": { "title": "Input", "key": "INPUT" },
            },
        })
    }

    #[test]
    fn schemas_are_checked() {
        assert!(check(&schema()).is_ok());
        for (path, value) in [
            ("/actorKeyValueStoreSchemaVersion", json!(2)),
            ("/title", json!(1)),
            ("/collections", json!([])),
            ("/collections/images", json!("x")),
            ("/collections/images/keyPrefix", json!("a/b")),
            ("/collections/images/keyPrefix", json!("")),
            ("/collections/images/contentTypes", json!("image/png")),
            ("/collections/input", json!({"title": "Neither"})),
            ("/collections/input", json!({"key": "a", "keyPrefix": "b"})),
        ] {
            let mut schema = schema();
            *schema.pointer_mut(path).expect(path) = value;
            assert!(check(&schema).is_err(), "{schema}");
        }
        assert!(check(&json!([])).is_err());
    }

    #[test]
    fn collections_and_prefixes_narrow_each_other() {
        let prefix = |text: &str| Some(Selection::Prefix(text.into()));
        for (collection, given, expected) in [
            (None, None, prefix("")),
            (None, Some("a"), prefix("a")),
            (Some("images"), None, prefix("image-")),
            (Some("images"), Some("im"), prefix("image-")),
            (Some("images"), Some("image-7"), prefix("image-7")),
            (Some("images"), Some("x"), Some(Selection::Nothing)),
            (Some("input"), None, Some(Selection::Key("INPUT".into()))),
            (
                Some("input"),
                Some("IN"),
                Some(Selection::Key("INPUT".into())),
            ),
            (Some("input"), Some("INPUT2"), Some(Selection::Nothing)),
            (Some("other"), None, None),
        ] {
            let selected = select(Some(&schema()), collection, given).ok();
            assert_eq!(selected, expected, "{collection:?} {given:?}");
        }
        assert!(select(None, Some("images"), None).is_err());
    }
}
