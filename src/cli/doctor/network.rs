//! Checks of the API: reached, clock, token, store, request limit.

use std::sync::Arc;

use url::Url;

use super::{Finding, changes, server};
use crate::apify::probe::{Answer, Probe};
use crate::base::redact::bare;
use crate::cli::args::DoctorArgs;
use crate::cli::reference;
use crate::cli::settings::{Environment, open_config};
use crate::metrics::Metrics;
use crate::mount::open::{self, OpenConfig, TokenSource, open};
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{Store, StoreError};

/// The least error of the clock that is reported, in seconds.
const SKEW_TOLD: i64 = 30;

/// From how much on a wrong clock breaks what depends on it, in seconds.
const SKEW_HARMFUL: i64 = 300;

/// Checks the API and, if one is given, the store.
pub fn check(args: &DoctorArgs, environment: &Environment, findings: &mut Vec<Finding>) {
    let typed = args
        .store
        .as_ref()
        .map(|typed| reference::parse(std::slice::from_ref(typed)));
    let reference = match typed {
        None => None,
        Some(Ok(reference)) => Some(reference),
        Some(Err(error)) => return findings.push(Finding::error("store", &error)),
    };
    // Only the address and the token of it count where no store is given.
    let any = || StoreRef::Remote(RemoteRef::Id(String::new()));
    let config = open_config(
        &args.access,
        environment,
        reference.clone().unwrap_or_else(any),
    );
    let config = match config {
        Ok(config) => config,
        Err(error) => return findings.push(Finding::error("access", &error)),
    };
    let store = match reference {
        Some(StoreRef::Directory(_) | StoreRef::Bucket { .. }) => {
            open_store(&config, findings);
            return;
        }
        store => store,
    };
    findings.extend(proxy(environment));
    let Some((base, probe)) = api(&config, findings) else {
        return;
    };
    if store.is_some()
        && let Some(store) = open_store(&config, findings)
    {
        if let StoreRef::Remote(remote) | StoreRef::Url { remote, .. } = &config.reference {
            access(&probe, remote, findings);
        }
        findings.push(server::wire(&probe, &base, &config.reference));
        findings.push(server::abilities(
            &probe,
            &base,
            &*store,
            config.attempt_timeout,
        ));
        findings.push(changes::told(&*store, config.attempt_timeout));
        if args.scratch_record {
            findings.push(changes::measured(&*store, config.attempt_timeout));
        }
    }
}

fn proxy(environment: &Environment) -> Option<Finding> {
    let shown: Vec<String> = environment
        .proxies()
        .iter()
        .map(|(name, value)| {
            let shown = match Url::parse(value) {
                Ok(url) if url.has_host() => bare(&url),
                // NO_PROXY, or an address without scheme.
                _ => value.rsplit('@').next().unwrap_or_default().to_owned(),
            };
            format!("{name}={shown}")
        })
        .collect();
    (!shown.is_empty()).then(|| {
        let what = shown.join(", ");
        Finding::ok("proxy", format!("servers other than this machine: {what}"))
    })
}

/// Asks the API which user the token belongs to; returns `None` if there is nothing to ask on.
fn api(config: &OpenConfig, findings: &mut Vec<Finding>) -> Option<(Url, Probe)> {
    let (base, token) = match open::access::server(config) {
        Ok(server) => server,
        Err(error) => {
            findings.push(store_error("token", &error));
            return None;
        }
    };
    let shown = bare(&base);
    let has_token = token.is_some();
    let asked = Probe::new(&base, token, config.attempt_timeout, config.plain_http)
        .and_then(|probe| Ok((probe.json("users/me")?, probe)));
    let (answer, probe) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            let fix = fix_of_connection(&error.to_string());
            findings.push(Finding::failure("api", format!("{shown}: {error}"), fix));
            return None;
        }
    };
    let ms = answer.elapsed.as_millis();
    let is_api = answer.json.is_some() && answer.status != 404;
    if answer.status >= 500 || answer.status == 407 || !is_api {
        findings.push(Finding::failure(
            "api",
            format!(
                "{shown} answers HTTP {}, not as the API does",
                answer.status
            ),
            "check --api-url and the proxy; if both are right, try again later",
        ));
        return None;
    }
    findings.push(Finding::ok("api", format!("{shown} answered in {ms} ms")));
    findings.extend(answer.clock_ahead_s.map(clock));
    findings.push(token_finding(config, has_token, &answer));
    findings.extend(rate_limit(&answer));
    Some((base, probe))
}

fn fix_of_connection(error: &str) -> String {
    let lower = error.to_ascii_lowercase();
    let fix = if lower.contains("certificate") || lower.contains("tls") {
        "the secure connection failed: check this machine's clock, the package ca-certificates, \
         and whether a proxy here has a certificate of its own (SSL_CERT_FILE names it)"
    } else if lower.contains("dns") || lower.contains("resolve") || lower.contains("lookup") {
        "the host name cannot be resolved: check the network, DNS and --api-url"
    } else if lower.contains("proxy") || lower.contains("tunnel") {
        "the proxy refuses: check HTTPS_PROXY and NO_PROXY"
    } else {
        "check the network, a firewall or proxy (HTTPS_PROXY), and --api-url"
    };
    fix.to_owned()
}

fn clock(ahead: i64) -> Finding {
    let apart = ahead.unsigned_abs();
    let which = if ahead > 0 { "behind" } else { "ahead of" };
    let message = format!("this machine's is {apart} s {which} the server's");
    let fix = "set the clock: sudo timedatectl set-ntp true";
    match ahead.abs() {
        SKEW_HARMFUL.. => Finding::failure(
            "clock",
            format!("{message}; it decides when links expire"),
            fix,
        ),
        SKEW_TOLD.. => Finding::warning("clock", message, fix),
        _ => Finding::ok("clock", "agrees with the server's"),
    }
}

fn token_finding(config: &OpenConfig, has_token: bool, answer: &Answer) -> Finding {
    let check = "token";
    let from = match &config.token {
        TokenSource::None | TokenSource::Bucket(_) => {
            return Finding::warning(
                check,
                "there is none: only public stores and signed links can be used",
                "set APIFY_TOKEN, use --token-file, or run apify login",
            );
        }
        TokenSource::Environment(_) => "of APIFY_TOKEN or the settings file".to_owned(),
        TokenSource::File(path) => format!("in {}", path.display()),
        TokenSource::CliLogin(path) => format!("of apify login, in {}", path.display()),
    };
    if !has_token {
        return Finding::warning(
            check,
            format!("the token {from} is not sent to this server"),
            "name the server with --api-url",
        );
    }
    match answer.status {
        200 => {
            let user = answer.json.as_ref().map(|json| &json["data"]);
            let text = |name: &str| user.and_then(|user| user[name].as_str()).unwrap_or("?");
            let (name, id) = (text("username"), text("id"));
            Finding::ok(
                check,
                format!("the token {from} is valid, of user {name} ({id})"),
            )
        }
        401 => Finding::failure(
            check,
            format!("the server does not know the token {from}"),
            "make a new one in Apify Console, Settings, API & Integrations; check --api-url",
        ),
        403 => Finding::ok(
            check,
            format!("the token {from} is limited: it may not ask for its own account"),
        ),
        status => Finding::warning(
            check,
            format!("cannot tell which account the token {from} belongs to: HTTP {status}"),
            "try again later",
        ),
    }
}

fn rate_limit(answer: &Answer) -> Option<Finding> {
    let limit = answer.header("x-ratelimit-limit")?;
    let message = format!("{limit} requests a second for the account's information");
    Some(Finding::ok("limit", message))
}

/// Opens the store as a mount would.
fn open_store(config: &OpenConfig, findings: &mut Vec<Finding>) -> Option<Arc<dyn Store>> {
    match open(config, Arc::new(Metrics::default())) {
        Ok(store) => {
            let info = store.info();
            let name = info.name.map_or(String::new(), |name| format!(" ({name})"));
            let message = format!("{} is there: {}{name}", config.reference, info.id);
            findings.push(Finding::ok("store", message));
            Some(store)
        }
        Err(error) => {
            findings.push(store_error("store", &error));
            None
        }
    }
}

pub(super) fn store_error(check: &'static str, error: &StoreError) -> Finding {
    let fix = error.hint().unwrap_or("see docs/TROUBLESHOOTING.md");
    Finding::failure(check, error.to_string(), fix)
}

/// Finds out what the token may do: only an account that may write to the store sees its signing
/// key.
fn access(probe: &Probe, remote: &RemoteRef, findings: &mut Vec<Finding>) {
    let Ok(answer) = probe.json(&remote.api_path()) else {
        return;
    };
    let data = answer.json.as_ref().map(|json| &json["data"]);
    let can_write = data.is_some_and(|data| data["urlSigningSecretKey"].is_string());
    let message = match (answer.status, can_write) {
        (200, true) => "reading and, by its signing key, writing and sharing",
        (200, false) => "reading; the API does not show its signing key, so no sharing",
        _ => "only listing and reading; the API tells nothing of the store itself",
    };
    findings.push(Finding::ok("permission", message));
    if let Some(limit) = answer.header("x-ratelimit-limit") {
        let message = format!("{limit} requests a second for this store");
        findings.push(Finding::ok("limit", message));
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_wrong_clock_is_told_by_how_much_it_matters() {
        for (ahead, state) in [
            (0, State::Ok),
            (-29, State::Ok),
            (31, State::Warning),
            (-299, State::Warning),
            (301, State::Failure),
            (-1_000_000, State::Failure),
        ] {
            assert_eq!(clock(ahead).state, state, "{ahead}");
        }
        assert!(clock(60).message.contains("60 s behind"));
        assert!(clock(-60).message.contains("60 s ahead"));
    }

    #[test]
    fn failures_to_connect_have_fixes_of_their_own() {
        for (error, fix) in [
            ("invalid peer certificate: Expired", "clock"),
            ("dns error: failed to lookup address", "DNS"),
            (
                "tunnel error: proxy authorization required",
                "HTTPS_PROXY and NO_PROXY",
            ),
            ("tcp connect error: Connection refused", "firewall"),
        ] {
            assert!(fix_of_connection(error).contains(fix), "{error}");
        }
    }
}
