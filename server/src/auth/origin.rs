//! Who asks: as it came in, and as a command carries it.
use std::fmt;
use std::sync::Arc;

/// Who a command acts for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A client that did not say who it is; authentication may be off.
    Client,
    /// The cluster itself, with root's rights. No request on the wire can produce it.
    RootInternal,
    /// A user, by a token or a certificate.
    User(Identity),
}

/// A user as a token or certificate names it; whether there is one is looked up where it counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its name.
    pub user: Arc<str>,
    /// Revision of the users and roles that the caller goes by: an older one than the current is refused where keys are touched.
    pub revision: u64,
}

/// What a request brought to show who asks. Not yet looked at.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    Nobody,
    /// A token, without `Bearer `.
    Token(Box<str>),
    /// The common name of the client's certificate, which was verified.
    CommonName(Arc<str>),
    /// This process itself, for its own health checks and alarms.
    Internal,
}

impl fmt::Debug for Credential {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("Nobody"),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::CommonName(name) => f.debug_tuple("CommonName").field(name).finish(),
            Self::Internal => f.write_str("Internal"),
        }
    }
}

/// The common name of a client's verified certificate, beside each of its requests; only where `--client-cert-auth` says that it names a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateName(pub Arc<str>);
