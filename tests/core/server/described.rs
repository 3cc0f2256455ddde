//! docs/serve-api.json says which endpoints the server answers, and how. The server is held to it
//! here: every address with every method, with and without a token.

use std::fs;
use std::path::Path;

use kvfs::base::redact::Secret;
use kvfs::server::{Lookup, StoreChange, User};
use reqwest::Method;
use reqwest::blocking::Response;
use serde_json::{Map, Value, json};

use super::{client, send};
use crate::support::served::{TOKEN, TestServer};

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"];

/// The description, read.
struct Described(Value);

impl Described {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/serve-api.json");
        let text = fs::read_to_string(path).expect("the description");
        Self(serde_json::from_str(&text).expect("JSON"))
    }

    /// Follows a reference within the description.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.trim_start_matches('#');
                self.resolve(self.0.pointer(pointer).expect(reference))
            }
            None => value,
        }
    }

    /// Returns what is wrong with a value by a schema.
    fn check(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        let fails = |why: &str| Err(format!("{place}: {why}: {value}"));
        let is = |kind: &str| match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("the type {other}"),
        };
        let right = match &schema["type"] {
            Value::Null => true,
            Value::String(kind) => is(kind),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
            other => panic!("the type {other}"),
        };
        if !right {
            return fails(&format!("not of type {}", schema["type"]));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            return fails("not one of those that may be");
        }
        if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
            let pattern = regex_lite::Regex::new(pattern).expect(pattern);
            if !pattern.is_match(text) {
                return fails("not of that form");
            }
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if value.get(name.as_str().expect("a name")).is_none() {
                return fails(&format!("{name} is missing"));
            }
        }
        if let (Some(properties), Some(fields)) =
            (schema["properties"].as_object(), value.as_object())
        {
            for (name, field) in fields {
                if let Some(schema) = properties.get(name) {
                    self.check(schema, field, &format!("{place}.{name}"))?;
                }
            }
        }
        for (n, item) in value.as_array().into_iter().flatten().enumerate() {
            if !schema["items"].is_null() {
                self.check(&schema["items"], item, &format!("{place}[{n}]"))?;
            }
        }
        Ok(())
    }

    /// Asserts that an answer is one of those that are described.
    #[track_caller]
    fn holds(&self, operation: &Value, what: &str, answer: Response) {
        let status = answer.status().as_u16().to_string();
        let described = &operation["responses"][&status];
        assert!(!described.is_null(), "{what}: {status} is not described");
        if what.starts_with("HEAD ") {
            return;
        }
        let described = self.resolve(described);
        let kind = answer.headers().get("content-type").cloned();
        let body = answer.bytes().expect("a body");
        let json = &described["content"]["application/json"]["schema"];
        if json.is_null() {
            let empty = described["content"].is_null();
            assert!(!empty || body.is_empty(), "{what}: {status} has a body");
            return;
        }
        // A record's own type is whatever its sender said.
        if !described["content"]["*/*"].is_null() {
            return;
        }
        let kind = kind.expect("a type");
        let kind = kind.to_str().expect("text");
        assert!(
            kind.starts_with("application/json"),
            "{what}: {status}: {kind}"
        );
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        if let Err(wrong) = self.check(json, &body, "body") {
            panic!("{what}: {status}: {wrong}");
        }
    }
}

fn server() -> TestServer {
    let server = TestServer::start_with(|config| {
        config
            .other_users
            .push((User::named("bob"), Secret::new("T2")));
    });
    server.put_text("post-images-1", "v");
    let schema = json!({
        "actorKeyValueStoreSchemaVersion": 1, "title": "Records",
        "collections": { "postImages": { "title": "Images", "keyPrefix": "post-images-" } },
    });
    let change = StoreChange {
        schema: Some(Some(schema)),
        ..StoreChange::default()
    };
    server
        .server
        .catalog()
        .update(&server.entry, &change)
        .expect("a change");
    server
}

/// Puts names into an address.
fn filled(path: &str, server: &TestServer) -> String {
    path.replace("{storeId}", &server.entry.id)
        .replace("{runId}", "run0000000000000A")
        .replace("{actorId}", "local~my-actor")
        .replace("{taskId}", "local~my-task")
        .replace("{userId}", "local")
        .replace("{recordKey}", "post-images-1")
}

fn ask(server: &TestServer, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
    let method: Method = method.parse().expect("a method");
    let mut request = client().request(method, format!("{}{path}", server.url()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    send(request.body(body.to_owned()))
}

#[test]
fn every_endpoint_answers_as_it_is_described() {
    let described = Described::read();
    let paths = described.0["paths"].as_object().expect("paths").clone();
    for (path, operations) in &paths {
        let methods: Vec<&str> = METHODS
            .into_iter()
            .filter(|method| !operations[method.to_lowercase()].is_null())
            .collect();
        // What deletes the store comes last.
        for method in METHODS
            .into_iter()
            .filter(|method| *method != "DELETE")
            .chain(["DELETE"])
        {
            let server = server();
            let address = filled(path, &server);
            let what = format!("{method} {path}");
            let operation = &operations[method.to_lowercase()];
            let body = match (method, path.contains("/records/")) {
                ("PUT" | "POST", true) => "{}",
                ("PUT", false) => "{\"title\": \"t\"}",
                _ => "",
            };
            if operation.is_null() {
                let answer = ask(&server, method, &address, Some(TOKEN), "");
                assert_eq!(answer.status(), 405, "{what}");
                let allowed = answer.headers()["allow"].to_str().expect("text").to_owned();
                for method in &methods {
                    assert!(allowed.contains(method), "{what}: {allowed}");
                }
                assert_eq!(
                    allowed.split(", ").count(),
                    methods.len() + 1,
                    "{what}: {allowed}"
                );
                continue;
            }
            for token in [None, Some("wrong"), Some("T2"), Some(TOKEN)] {
                let answer = ask(&server, method, &address, token, body);
                if token == Some(TOKEN) {
                    assert!(answer.status().is_success(), "{what}: {}", answer.status());
                }
                described.holds(operation, &format!("{what} as {token:?}"), answer);
            }
            let odd = filled(&path.replace("{recordKey}", "a%20b"), &server)
                .replace(&server.entry.id, "AAAAAAAAAAAAAAAAA");
            if odd != address {
                let answer = ask(&server, method, &odd, Some(TOKEN), body);
                described.holds(operation, &format!("{what}, what is not there"), answer);
            }
        }
    }
}

#[test]
fn parameters_are_taken_and_refused_as_they_are_described() {
    let described = Described::read();
    let server = server();
    let paths = described.0["paths"].as_object().expect("paths");
    for (path, operations) in paths {
        let get = &operations["get"];
        let own = get["parameters"].as_array().into_iter().flatten();
        let shared = operations["parameters"].as_array().into_iter().flatten();
        for parameter in own.chain(shared) {
            let parameter = described.resolve(parameter);
            if parameter["in"] != "query" {
                continue;
            }
            let name = parameter["name"].as_str().expect("a name");
            let schema = parameter["schema"].as_object().expect("a schema");
            for (value, right) in values(schema) {
                let query = format!("{}?{name}={value}", filled(path, &server));
                let answer = ask(&server, "GET", &query, Some(TOKEN), "");
                let status = answer.status().as_u16();
                // A run with another status is not there.
                let fine = matches!(status, 200 | 404);
                assert_eq!(fine, right, "{path}?{name}={value}: {status}");
                described.holds(get, &format!("{path}?{name}={value}"), answer);
            }
        }
    }
    let store = server.server.catalog().find(Lookup::Id(&server.entry.id));
    assert!(store.expect("a catalog").is_some());
}

/// Values of a parameter, and whether they are right.
fn values(schema: &Map<String, Value>) -> Vec<(String, bool)> {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        let allowed = allowed.iter().filter_map(Value::as_str);
        let mut values: Vec<_> = allowed.map(|value| (value.to_owned(), true)).collect();
        // Any other origin is that of no run.
        if values.len() < 5 {
            values.push(("nonsense".to_owned(), false));
        }
        return values;
    }
    let values: &[(&str, bool)] = match schema["type"].as_str() {
        Some("boolean") => &[
            ("1", true),
            ("0", true),
            ("true", true),
            ("false", true),
            ("yes", false),
        ],
        Some("integer" | "number") => &[
            ("0", true),
            ("1", true),
            ("1000", true),
            ("5000", true),
            ("-1", false),
            ("x", false),
        ],
        _ => &[("x", true)],
    };
    values
        .iter()
        .map(|(value, right)| ((*value).to_owned(), *right))
        .collect()
}
