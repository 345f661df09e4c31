//! The authority: signs certificates as a pure function of key, caller, time.
//!
//! In: a verified public key ([`request`]), the caller's identity, a lifetime, the time. Out: [`Issued`].
//! Kept true: one critical SPIFFE URI, no CA, random serial, not before two minutes ago, never beyond the issuer's own end.
//! Not here: files and their renewal ([`source`]), who the caller is (`caller`).

pub mod files;
pub mod plugged;
pub mod request;
pub mod self_signed;
pub mod source;

use std::time::{Duration, SystemTime};

use mesh_identity::{
    Credentials, PrivateKey, SpiffeId, TrustBundle,
    credentials::LeafFacts,
    pem::{self, PemError},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    tls::verify,
};
use rand::Rng;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey, string::Ia5String,
};

/// How far back a certificate starts, for peers whose clock is behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// How long certificates may live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// When the request names none.
    pub default: Duration,
    /// Longer wishes are cut to this.
    pub max: Duration,
}

impl Default for Lifetimes {
    /// 24 hours; at most 90 days.
    fn default() -> Self {
        Self { default: Duration::from_secs(24 * 3600), max: Duration::from_secs(90 * 24 * 3600) }
    }
}

impl Lifetimes {
    /// The lifetime for a wish in seconds; zero and less mean no wish.
    pub fn grant(&self, wish: i64) -> Duration {
        match u64::try_from(wish) {
            Ok(0) | Err(_) => self.default.min(self.max),
            Ok(seconds) => Duration::from_secs(seconds).min(self.max),
        }
    }
}

/// An authority cannot be used, or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file is missing or not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The parts do not make an authority.
    #[error("{place}: {why}")]
    Unfit {
        /// Which files.
        place: String,
        /// What is wrong, with the fix.
        why: String,
    },
    /// The authority's own certificate has ended.
    #[error(
        "the signing certificate has expired; replace it (self-signed: restart citadel with a correct clock)"
    )]
    Expired,
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A signing key that is wiped when dropped.
pub(crate) struct CaKey(KeyPair);

impl CaKey {
    pub(crate) fn of(key: &PrivateKey) -> Result<Self, rcgen::Error> {
        KeyPair::try_from(key.der()).map(Self)
    }
}

impl Drop for CaKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A key with its certificates, ready to sign. Immutable; a changed authority is a new one.
pub struct Authority {
    issuer: Issuer<'static, CaKey>,
    chain: Vec<CertificateDer<'static>>,
    bundle: TrustBundle,
    not_after: SystemTime,
    roots_not_after: SystemTime,
}

/// A new certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub leaf: CertificateDer<'static>,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Authority {
    /// Puts an authority together and tries it out: a certificate that it signs must verify against its own roots.
    ///
    /// `signing` is the certificate of `key`; `chain` all intermediates from it (first) towards the root, empty when
    /// `signing` is a root itself. `place` names their origin in errors.
    ///
    /// # Errors
    /// [`AuthorityError::Unfit`] says which part does not fit.
    pub fn new(
        place: &str,
        signing: &CertificateDer<'static>,
        key: &PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        bundle: TrustBundle,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let unfit = |why: String| AuthorityError::Unfit { place: place.into(), why };
        let pair = CaKey::of(key).map_err(|e| unfit(format!("the private key cannot sign: {e}")))?;
        check_signing(signing, &pair).map_err(|why| unfit(why.into()))?;
        let issuer = Issuer::from_ca_cert_der(signing, pair)
            .map_err(|e| unfit(format!("the signing certificate cannot be used: {e}")))?;
        let ends = |certs: &[CertificateDer<'static>]| -> Result<Vec<SystemTime>, PemError> {
            certs.iter().map(|c| LeafFacts::of(place, c).map(|facts| facts.not_after)).collect()
        };
        let signing_ends = LeafFacts::of(place, signing)?.not_after;
        let not_after = ends(&chain)?.into_iter().fold(signing_ends, SystemTime::min);
        let roots_not_after = ends(bundle.roots())?.into_iter().max().unwrap_or(signing_ends);
        if not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let this = Self { issuer, chain, bundle, not_after, roots_not_after };
        this.try_out(now).map_err(unfit)?;
        Ok(this)
    }

    fn try_out(&self, now: SystemTime) -> Result<(), String> {
        let id: SpiffeId = "spiffe://self.test/ns/self/sa/test".parse().map_err(|e| format!("{e}"))?;
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let issued = self.sign(&key, &id, CLOCK_SKEW, now).map_err(|e| e.to_string())?;
        let mut chain = vec![issued.leaf];
        chain.extend(self.chain.iter().cloned());
        verify::check_client(&chain, &self.bundle, &[id.trust_domain().clone()], now).map_err(|e| {
            format!("what it signs does not verify against its own roots ({e}); check cert-chain and roots")
        })?;
        Ok(())
    }

    /// Signs a public key for an identity.
    ///
    /// # Errors
    /// When the authority itself has ended, or the key is of a kind that cannot be certified.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        self.sign_named(key, id, &[], ttl, now)
    }

    /// As [`Self::sign`], with DNS names beside the identity: for servers that callers outside the mesh know by name.
    ///
    /// # Errors
    /// As [`Self::sign`], and when a name is none.
    pub fn sign_named(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        dns: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        if self.not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let unfit = |why: String| AuthorityError::Unfit { place: id.to_string(), why };
        let not_after = now.checked_add(ttl).unwrap_or(self.not_after).min(self.not_after);
        let serial = random_serial();
        let name = Ia5String::try_from(id.as_str()).map_err(|e| unfit(e.to_string()))?;
        let mut params = CertificateParams::default();
        // No subject: RFC 5280 then makes the alternative name critical, which is what SPIFFE asks for.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name)];
        for name in dns {
            let name = Ia5String::try_from(name.as_str()).map_err(|e| unfit(e.to_string()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer).map_err(|e| unfit(e.to_string()))?;
        Ok(Issued {
            leaf: cert.der().clone(),
            serial: serial.iter().map(|b| format!("{b:02x}")).collect(),
            not_after,
        })
    }

    /// The wire's chain for a certificate: leaf, each intermediate by itself, the root bundle last; all end in a newline.
    pub fn answer(&self, issued: &Issued) -> Vec<String> {
        let mut parts = Vec::with_capacity(self.chain.len() + 2);
        parts.push(pem::encode(&issued.leaf));
        parts.extend(self.chain.iter().map(pem::encode));
        parts.push(self.bundle.to_pem());
        parts
    }

    /// A certificate with a fresh key, for citadel's own server.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn credentials(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Credentials, AuthorityError> {
        let mut pair = KeyPair::generate()
            .map_err(|e| AuthorityError::Unfit { place: id.to_string(), why: e.to_string() })?;
        let issued = self.sign(&pair, id, ttl, now)?;
        let key = PrivateKey::from_der(PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
        zeroize::Zeroize::zeroize(&mut pair);
        let mut chain = vec![issued.leaf];
        chain.extend(self.chain.iter().cloned());
        Ok(Credentials::new("own certificate", chain, key)?)
    }

    /// The roots to distribute.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// When this authority can sign no more: the earliest end of its signing certificate and intermediates.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the last root of the bundle ends.
    pub fn roots_not_after(&self) -> SystemTime {
        self.roots_not_after
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("intermediates", &self.chain.len())
            .field("bundle", &self.bundle)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn check_signing(signing: &CertificateDer<'_>, pair: &CaKey) -> Result<(), &'static str> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(signing).map_err(|_| "the signing certificate is not X.509")?;
    if !cert.is_ca() {
        return Err("the signing certificate is not a CA certificate (basic constraints CA:TRUE is missing)");
    }
    if let Ok(Some(usage)) = cert.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err("the signing certificate may not sign certificates (key usage keyCertSign is missing)");
    }
    if cert.public_key().raw != pair.subject_public_key_info() {
        return Err("the private key does not belong to the signing certificate");
    }
    Ok(())
}

/// 127 random bits: positive, and never zero.
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::rng().random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

#[cfg(test)]
mod tests;
