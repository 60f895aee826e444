//! One TLS provider (ring, installed in main) for peers and for Postgres.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
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
    let roots = Arc::new(if verify == Verify::Nothing {
        RootCertStore::empty()
    } else {
        roots(root_file)?
    });
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        Verify::Full if !roots.is_empty() => {
            WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|e| e.to_string())?
        }
        _ => Arc::new(Lenient {
            verify,
            roots,
            provider: provider.clone(),
        }),
    };
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
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| e.to_string())
}

fn read_certs(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|e| format!("{}: {e}", file.display()))
}

fn roots(root_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match root_file {
        Some(file) => {
            let (added, _) = store.add_parsable_certificates(read_certs(file)?);
            if added == 0 {
                return Err(format!("{}: holds no certificate", file.display()));
            }
        }
        // A machine without roots refuses at the handshake, not at the start.
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(store)
}

/// Verifies less than everything, as libpq's sslmodes below verify-full do.
#[derive(Debug)]
struct Lenient {
    verify: Verify,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify != Verify::Nothing {
            let cert = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &cert,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
