//! Errors, with the statuses and types of the platform.

use kvfs::base::redact::Secret;
use kvfs::server::User;

use super::{HTML, assert_error, client, owner, raw_call, send};
use crate::support::served::{STORE, TOKEN, TestServer};

#[test]
fn errors_have_the_platforms_statuses_and_types() {
    let server = TestServer::start_with(|config| {
        config.other_users.push((
            User {
                id: "otherUser00000001".into(),
                username: "other".into(),
            },
            Secret::new("T2"),
        ));
    });
    server.put_text("k", "v");
    let store = format!("/v2/key-value-stores/{}", server.entry.id);
    let anonymous = |path: String| send(client().get(format!("{}{path}", server.url())));
    let with = |path: String, token: &str| {
        send(
            client()
                .get(format!("{}{path}", server.url()))
                .bearer_auth(token),
        )
    };
    assert_error(
        owner(&server, &format!("{store}/records/none")),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/AAAAAAAAAAAAAAAAA"),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, &format!("/v2/key-value-stores/{STORE}")),
        404,
        "record-not-found",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/~"),
        400,
        "invalid-request",
    );
    assert_error(
        owner(&server, "/v2/key-value-stores/local~"),
        400,
        "invalid-request",
    );
    assert_error(owner(&server, "/v2/nowhere"), 404, "page-not-found");
    assert_error(owner(&server, &format!("{store}/")), 404, "page-not-found");
    assert_error(
        owner(&server, &format!("{store}/records/a%20b")),
        400,
        "invalid-record-key",
    );
    assert_error(
        owner(&server, &format!("{store}/keys?limit=x")),
        400,
        "invalid-request",
    );
    assert_error(
        owner(&server, &format!("{store}/keys?collection=c")),
        400,
        "invalid-collection",
    );
    assert_error(anonymous("/v2/users/me".into()), 401, "token-not-provided");
    assert_error(
        anonymous("/v2/key-value-stores".into()),
        401,
        "token-not-provided",
    );
    assert_error(
        anonymous(format!("{store}/keys")),
        401,
        "token-not-provided",
    );
    assert_error(
        anonymous(format!("{store}/records/k")),
        401,
        "token-not-provided",
    );
    assert_error(
        with(format!("{store}/records/k"), "T2"),
        403,
        "insufficient-permissions",
    );
    assert_error(
        with(format!("{store}/keys"), "T2"),
        403,
        "insufficient-permissions",
    );
    assert_error(
        with(format!("{store}/keys"), "wrong"),
        401,
        "user-or-token-not-found",
    );
    assert_error(
        anonymous(format!("{store}/records/k?signature=x")),
        403,
        "insufficient-permissions",
    );
    let put = |key: &str| {
        client()
            .put(server.record_url(key))
            .bearer_auth(TOKEN)
            .body("x")
    };
    assert_error(send(put("a%2Fb")), 400, "invalid-record-key");
    assert_error(
        send(put("a").header("content-encoding", "bla")),
        415,
        "unsupported-content-encoding",
    );
    assert_error(
        send(
            put("a")
                .header("content-encoding", "bla")
                .header("content-type", HTML),
        ),
        403,
        "content-encoding-forbidden-for-html",
    );
    assert_error(
        send(client().put(server.record_url("a")).body("x")),
        401,
        "token-not-provided",
    );
    assert_error(
        send(client().patch(server.record_url("a")).bearer_auth(TOKEN)),
        405,
        "method-not-allowed",
    );
    let (status, text) = raw_call(&server, "TRACE", &format!("{store}/keys"), "");
    assert_eq!(status, 405);
    assert!(
        text.contains("using the following HTTP methods: OPTIONS,GET\""),
        "{text}"
    );
    let worker = client()
        .get(server.record_url("k"))
        .bearer_auth(TOKEN)
        .header("service-worker", "script");
    assert_error(send(worker), 403, "service-worker-registration-not-allowed");
}
