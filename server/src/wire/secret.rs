//! Debug of messages that hold secrets: everything but the secrets.
//!
//! prost asks every message for Debug, and what can be printed ends up printed (CVE-2021-28235).
use super::authpb::User;
use super::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
};
use std::fmt;

impl fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateResponse").field("header", &self.header).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthUserAddRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, options, .. } = self;
        f.debug_struct("AuthUserAddRequest")
            .field("name", name)
            .field("options", options)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthUserChangePasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthUserChangePasswordRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, roles, options, .. } = self;
        f.debug_struct("User")
            .field("name", name)
            .field("roles", roles)
            .field("options", options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let secret = || "s3cret".to_owned();
        let printed = [
            format!("{:?}", AuthenticateRequest { name: "a".into(), password: secret() }),
            format!("{:?}", AuthenticateResponse { header: None, token: secret() }),
            format!(
                "{:?}",
                AuthUserAddRequest {
                    name: "a".into(),
                    password: secret(),
                    hashed_password: secret(),
                    options: None
                }
            ),
            format!(
                "{:?}",
                AuthUserChangePasswordRequest {
                    name: "a".into(),
                    password: secret(),
                    hashed_password: secret()
                }
            ),
            format!("{:?}", User { password: secret().into(), ..User::default() }),
        ];
        for printed in printed {
            assert!(!printed.contains("s3cret") && printed.len() > 4, "{printed}");
        }
    }
}
