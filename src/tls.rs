//! One TLS provider (ring, installed in main) for peers and for Postgres.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// How much of a server's certificate is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// None of it: encrypted, not authenticated.
    Nothing,
    /// Signed by a known authority, for any name.
    Authority,
    /// Signed by a known authority, for the name that was asked.
    Full,
}

/// A client's certificate and key, two PEM files.
pub type ClientPair<'a> = (&'a Path, &'a Path);

/// A client configuration with the system's roots, or with those of a PEM file.
///
/// # Errors
/// A file that cannot be read or holds no certificate, named in the message.
pub fn client_config(
    verify: Verify,
    root_file: Option<&Path>,
    client: Option<ClientPair<'_>>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let named = match root_file {
        Some(file) if verify != Verify::Nothing => read_certs(file)?,
        _ => Vec::new(),
    };
    let roots = Arc::new(match (verify, root_file) {
        (Verify::Nothing, _) => RootCertStore::empty(),
        (_, Some(file)) => roots_of(&named, file)?,
        (_, None) => system_roots(),
    });
    let verifier = Arc::new(Verifier { verify, roots, named, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((cert, key)) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = read_certs(cert)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())
}

fn read_certs(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|e| format!("{}: {e}", file.display()))
}

fn roots_of(named: &[CertificateDer<'static>], file: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(named.iter().cloned());
    if added == 0 {
        return Err(format!("{}: holds no certificate", file.display()));
    }
    Ok(store)
}

/// A machine without roots refuses at the handshake, not at the start.
fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    store
}

/// Verifies as libpq's sslmodes do: less than everything below verify-full,
/// and a certificate that the operator named stands for itself.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    roots: Arc<RootCertStore>,
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// A self-signed certificate as PostgreSQL's manual makes it is its own
    /// authority, which webpki takes from no server, but libpq and pgx do.
    /// Only its dates count then; webpki looks at those first.
    fn stands_for_itself(&self, end_entity: &CertificateDer<'_>, error: &Error) -> bool {
        let out_of_date = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            )
        );
        self.named.iter().any(|named| named == end_entity) && !out_of_date
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify == Verify::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed =
            verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms);
        if let Err(error) = signed
            && !self.stands_for_itself(end_entity, &error)
        {
            return Err(match error {
                // A self-signed one: what it says of itself is webpki's jargon.
                Error::InvalidCertificate(CertificateError::Other(_)) => {
                    CertificateError::UnknownIssuer.into()
                }
                error => error,
            });
        }
        if self.verify == Verify::Full {
            verify_server_name(&cert, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // openssl req -x509 -subj /CN=db -addext subjectAltName=DNS:db.example
    // -days 36500: CA:TRUE, as PostgreSQL's manual makes a server's.
    const OWN: &str = "\
-----BEGIN CERTIFICATE-----
MIIBhzCCAS6gAwIBAgIUNITbE6T/nGmmYkjnNqzo9ZKKrrMwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCZGIwIBcNMjYxMTIzMjA1NzUyWhgPMjEyNjEwMzAyMDU3NTJa
MA0xCzAJBgNVBAMMAmRiMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcJx28xDD
nq2psxpyHBMJLjxW43xoiVRG3U25o5DjHFteI06P+LRJxeLicfxCKK/r4vrGz4sb
DaGr2s2G1nmxPaNqMGgwHQYDVR0OBBYEFGZaHUydIw5OawyUeG1j4kvzki+GMB8G
A1UdIwQYMBaAFGZaHUydIw5OawyUeG1j4kvzki+GMA8GA1UdEwEB/wQFMAMBAf8w
FQYDVR0RBA4wDIIKZGIuZXhhbXBsZTAKBggqhkjOPQQDAgNHADBEAiAAkaR/F24o
q3fVb46zfRfte3pPWsew9YeRGsh6DoKvbgIgCMIuKRt6nC1dwiuqcEdII60FUxP7
xJrL4X9gVOrlEMU=
-----END CERTIFICATE-----
";
    const OTHER: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS6gAwIBAgIUTpPQj6THDak+QOMdwPsTl2RVtA4wCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCZGIwIBcNMjYxMTIzMjA1NzUyWhgPMjEyNjEwMzAyMDU3NTJa
MA0xCzAJBgNVBAMMAmRiMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEamzOdSC0
CQwc4UX/aJRl73ypAAGpGMfHm2QZY2QS6F8X6Es015jOj29PM1fB0tMCcmCpoM7X
v8p6vOOlG71YlKNqMGgwHQYDVR0OBBYEFD5tOt+mJIYOpnRxaZM8EhrAqHv5MB8G
A1UdIwQYMBaAFD5tOt+mJIYOpnRxaZM8EhrAqHv5MA8GA1UdEwEB/wQFMAMBAf8w
FQYDVR0RBA4wDIIKZGIuZXhhbXBsZTAKBggqhkjOPQQDAgNIADBFAiEAtReWNXck
VIlL/UJXE0jSk+D+ukZwmb9t87zlpRsZyhkCIGEBX9jmcHJ5poDLErqO8EkPRuCS
tsUWGXRVWY8kqKLz
-----END CERTIFICATE-----
";

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// Whether a server with `OWN` is believed where `named` is the root file.
    fn believed(verify: Verify, named: &str, host: &'static str, year: u64) -> Result<(), Error> {
        let named = vec![der(named)];
        let verifier = Verifier {
            verify,
            roots: Arc::new(roots_of(&named, Path::new("root.crt")).unwrap()),
            named,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        };
        let name = ServerName::try_from(host).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs((year - 1970) * 31_557_600));
        verifier.verify_server_cert(&der(OWN), &[], &name, &[], now).map(|_| ())
    }

    #[test]
    fn a_named_certificate_stands_for_itself() {
        use Verify::{Authority, Full};
        assert_eq!(believed(Full, OWN, "db.example", 2030), Ok(()));
        assert_eq!(believed(Authority, OWN, "elsewhere.example", 2030), Ok(()));
    }

    #[test]
    fn it_does_so_for_its_name_in_its_time_only() {
        use Verify::{Authority, Full};
        assert!(believed(Full, OWN, "elsewhere.example", 2030).is_err());
        assert!(believed(Full, OWN, "db.example", 2020).is_err());
        assert!(believed(Authority, OWN, "db.example", 2130).is_err());
        assert!(believed(Full, OTHER, "db.example", 2030).is_err());
        assert_eq!(
            believed(Authority, OTHER, "db.example", 2030),
            Err(CertificateError::UnknownIssuer.into())
        );
    }
}
