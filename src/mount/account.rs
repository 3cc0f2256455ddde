//! The account that a token opens, for commands about its stores.

use std::sync::Arc;

use super::open::OpenConfig;
use super::open::access::server;
use crate::apify::account::Account;
use crate::apify::http::{HttpClient, HttpOptions};
use crate::metrics::Metrics;
use crate::store::Result;

/// Opens the account; makes no request.
///
/// # Errors
/// That the address or the token's file cannot be used.
pub fn open_account(config: &OpenConfig, metrics: Arc<Metrics>) -> Result<Account> {
    let (base, token) = server(config)?;
    let options = HttpOptions {
        resume_timeout: config.deadline,
        plain_http: config.plain_http,
        ..HttpOptions::new(config.attempt_timeout)
    };
    let http = Arc::new(HttpClient::new(&base, options, metrics)?);
    Ok(Account::new(http, token, base))
}
