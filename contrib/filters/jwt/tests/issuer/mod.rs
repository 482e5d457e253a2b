//! An issuer of tokens, with keys that are good for tests only.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// A private key, and how its public half is listed.
#[derive(Clone)]
pub(crate) struct Signer {
    pub(crate) kid: &'static str,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: EncodingKey,
}

fn der(base64: &str) -> Vec<u8> {
    let mut bits = 0u32;
    let mut count = 0;
    let mut out = Vec::new();
    for byte in base64.bytes().filter(|b| *b != b'=') {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

pub(crate) fn rsa(kid: &'static str) -> Signer {
    let key = EncodingKey::from_rsa_der(&der(RSA));
    Signer { kid, algorithm: Algorithm::RS256, key }
}

#[allow(dead_code)]
pub(crate) fn other_rsa(kid: &'static str) -> Signer {
    let key = EncodingKey::from_rsa_der(&der(OTHER_RSA));
    Signer { kid, algorithm: Algorithm::RS256, key }
}

/// Too short to be safe.
#[allow(dead_code)]
pub(crate) fn short_rsa(kid: &'static str) -> Signer {
    let key = EncodingKey::from_rsa_der(&der(SHORT_RSA));
    Signer { kid, algorithm: Algorithm::RS256, key }
}

#[allow(dead_code)]
pub(crate) fn ec(kid: &'static str) -> Signer {
    let key = EncodingKey::from_ec_der(&der(EC));
    Signer { kid, algorithm: Algorithm::ES256, key }
}

#[allow(dead_code)]
pub(crate) fn ed(kid: &'static str) -> Signer {
    // PKCS #8 of an Ed25519 key: a fixed head, and 32 bytes of secret.
    let mut pkcs8 = der("MC4CAQAwBQYDK2VwBCIEIA==");
    pkcs8.extend([7; 32]);
    Signer { kid, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(&pkcs8) }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are fine.
pub(crate) fn claims() -> Value {
    json!({"iss": "https://issuer.test", "sub": "alice", "aud": "us", "exp": now() + 600})
}

/// The same with some claims changed; null takes one out.
#[allow(dead_code)]
pub(crate) fn claims_with(changes: Value) -> Value {
    let mut all = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value.clone(),
        }
    }
    all
}

impl Signer {
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithm, claims)
    }

    pub(crate) fn sign_as(&self, algorithm: Algorithm, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }

    /// The public key.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }
}

/// A key set.
pub(crate) fn jwks(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

const RSA: &str = "\
    MIIEpAIBAAKCAQEAoKs09K/ZM9hSeL5h0WprwUa1VDvapyfWJwQLQqavBIcge2DaGlpw2s75F0xNN+s1kZ4ta4gu\
    3QfPcWseqt9ZofaYCpBYBpirwRDQuBRu67HOEMsXmbhcbLiYP5yhdYhXa8svGc7/NkiTqYzuurL3jxciliKqDuGt\
    uZFi9WECtjlCcsapOmPN3SbBHR4jbLgUDkA+419lnsAXfPvma79sahiPZK1kAuvVx6fOgR1xdCNyXaGhPfVwISgk\
    ETp0+dLKhdcrbo8XbnW/kpfe69J1AE5FfkKfDhqal+seGIoYDp6fp1LrsxRArNL1MW1awBOInPFhwncwARd7uBQO\
    rQKWzwIDAQABAoIBACx+rXgz+NVsS46nvsQ1kijg8Zelycxv8lU0v/+R1LdOyraQYGZa9JUMK5yBo4LgbyHoKdD1\
    UnEg2BijX0dX+mUpuvp19gLBphMeGodYFU3NnHE3JU6LaYEsb/Fx6Z74hqlSCDXABxqb59TVNEndBUUJ1ai5adoc\
    MrXI5xxoZM1cxij0blHrarwa6EecanaCrl0Das1XK+3iXM+ZQF1F4Lddegnie8oATQ7s68FbwRWt02prk8COWFBI\
    5Xyac+rDCE5S07zMT0qvOdr6Bx1sJkFSiBqN4DqR8EN8mP5df336Z+BfIJbYsrTbngyskCdO8E1vIMc6CGG1y+Is\
    eXSr9f0CgYEA4cwIgzq9AGjGkXwYh0lsl75tfBjT8DRMiPOjXPTvmCmD1i5Sq1ao5xWPzuVdJRVldbpsxzmpuJCP\
    KeAyNEPWNlEB7Pdfq7bKZR5mgXq2XSYZ4jNQPD/xuw2MnzoOARhFEJ5oGWMdPn1BFb5Wf4bWs6Rh0yEzTG/RkNVD\
    +Pj6j9UCgYEAtij82w98/GOPe2MXQRrSnvq1llBzngYGtlWiwiUeb9PpqmPM9LYbA6N1xDU/3YpZZvqvq0q2xsER\
    EjSWauHMNjDo7w8uSoVw4VStPAVEA9vboftGTNLFCGWbMKLFYbSWHSWFtbqS8kgUcd7F2nToZ4ndekV1O+dz3Qyh\
    GyOBQhMCgYEAt+Qxcp7d2n16anYEi/myZQsDo7Oct94ADvFNtKEOmIAHDOIBFeWn/TtEOZ329AKu9Oh1OvOtU9D3\
    p4Udng85YFctGE6HLhPaVewiU4UbDFXBcsWTrN3vAwYP5oWjbiTT6qr34OUlpgTggtLXI1kvdnKD8Szy2Geg5zGp\
    ABXWClkCgYEAstjRUd8GDuNNZ46lsUU9j9uFV/zLV1aBVpoDv+wj0xXTsHhmLclyAoOFx8ukVcZU+recrGghxkie\
    kypQmMXy8y3YNYbJI1+asZGquGhPHB7LqGEF5710uEbSNNFLTB+61wkVG5UAW6KLeDWKOm9YEvgYHMl/Tf50Eo8o\
    ynV0nkMCgYAA9uDQa06HRxAZhg26t0eeFQXP8wy22vDDzsqkJ0oU+ilAbk4zvHTfNObOpozUjHB614egFxb9yIE9\
    01ObDSRnM/+SYQ6rQtwj8bgtgorxxRJYCJ26PGsXvkdemap/buE/O0qL4TGlYg0m7av7u4wuLNRpgwOYbfcd1DV/\
    vHZ9+A==";

#[allow(dead_code)]
const OTHER_RSA: &str = "\
    MIIEowIBAAKCAQEAzGIE46lMlCryhBPC4z4i9V1P3FfZnphL36O/aI48H/kTpIwVNBYgaJ4+h4lQQnECnKLBNT7r\
    5bol+sjASqXbtF8conRn2k9/NI0fL6CX3yeKl6HYv1WZiPEwebH9+batNec7j7FWLkg9aI0FihqSV99dagSJiZQu\
    2ouilQo3JpDjzQBqfpkkkpGLtcOTxObCp1JF5XgefpYLD6PU9BpXh8MRp3ZsQsolXMYYWPWhFgaW4edDmYihTDsZ\
    2zenCNYqVBXpyJtWHuztluGNpOBi+BFiHf1Oj/yRHYVCfnmRNdFMIrjoga5fo2/EaW0hIP4ep5F9cWVxVNDqYAh4\
    ayyTXwIDAQABAoIBAFTXV5o93Bkhntxu65azY4WhP5aDLUYliFGEwt8fNBw9pAbJU7/0c22aSvCuco+yI9hrw3Jb\
    9Ua+uCdbkF8sbIB6fwN8+ONp3q8s6cY2jvTGkESTncsHOJ3dKTdLSNeRGmPm4hWrEtBRkpRE/givMRKjGT76NTHU\
    PoLgNhRSUkSCYGd1M+VaU2czpW7sRxJT51CBCcP7sX2Ghk4PIw7aUSaQGWgkeWh88B1JjOgRGWfEqCO8qIQKsSU/\
    guL9m7wyfeQTqjR10573silhW5d/jiWLYRbHkHShAlcweB77qf9+D+jhaxzXH2xIl6UKttmfmRIgmCZMf+KsaflV\
    DwUUdLECgYEA9uuVYLN0dD7E1z+6ARphh/CUJa2n+/t3JlrbHRB2/XZRrxnptOkDighpAI3aSnj6DsUbHEcx+KBu\
    dhRvE8v5MQuH8sfIAXLoGUVCl3YSlTv/scGD57z0T32vcYcHGobVpnUdPzmhRAJGrldHb5ru1w2MK3QI3Cf33+vF\
    giOOaykCgYEA0+YBJzkPUiWRUlZY3KbI7bLCSFUyPUgcNo7/pMI6m9ObcreTdUFE0WDwSGsr4to7f3+kc0XZdONj\
    Pv/tDQ/X63Ro1Ih4ir5zPHCtt4Nq5erhCt/2worJe3dKBvw/jjUHQ8k+Az0rxdMz8jGhPSMeTQ15xFAuw3YmMAfi\
    ycTcY0cCgYAGHHKIACkDr4IDqcoauOJtEOE5xYCA1gpu4pTFtWCciU8gPE3ycknqIqcmolwit7fIocw3+PMdqirR\
    tVPCc6vpMNXehl9G2ecwqOwq/3saQm/joFx5Yc3SIdQzxRnB6FBlXESrCewZ2MyTCAn2kykSHX24nZiSilKyMg2j\
    WOnvcQKBgQDN9yVr0KS5vlZw6AlcAKoRkc4SrO02b98skPagWULKsHbKnPGx6Y1Qz57/ZVy1Flb66UEZ4u0qFtQj\
    KnRqW9oOvYof+77fbZtpRkU0uYKwlQvFnEiodGq/ngXQoGPOgHDdTMEAOPdRRKebZO5LFNWhI9YWIbIyv6cCzMd+\
    Q+HMhQKBgAFCm+l0Mem/pHhHDNSv53iAVjNxHa3UwP/rDa7lC2p3fMFRQCf8N8bubO334Myzzm/r6wIXtphjCq5p\
    PL9xsES0Sh7hwhtqdiCqSHrIQv1jtie/TK/EpiAIwyfTWWZhmMxRxokNJGYb4DFIF5EOzm7L0C8Lq3egnid5kT54\
    zWlp";

#[allow(dead_code)]
const SHORT_RSA: &str = "\
    MIICXAIBAAKBgQDeNax+zQNFEIWtbVd8linb/JIpY6hr7bzRsVAJsIRAXcpGDs83KkzfPmyyRap9UODqBaIkJjTg\
    zg2hKQ9th/JKAXpUw39DEvHr9maPQ4c8h1wQc5sWMJFA/ybFN6Kl4XJDyof+AkjcJu9IT2v4OnFBR72q+6Yyp8rj\
    s9wCFL4jcwIDAQABAoGAaCRpqqf031qF/Cjhts894Q83hVRiq+qo8vISG+hxoyUR1tG8BhO6IWrFUKvb4o2US7nG\
    KwEJCU8pDh4LT/9F6s+/YKDjF5Lsc+Toy3notKT422LKlmlu2n721Ya8G1Ka5PxDMjIlJ43SlikP1UP7K9fJ4C0Z\
    ystym4ZFJhbU2GkCQQDxlvX/pIAQefftLoaiF/Fa8pIQbuoSn2+vxnUzKLFOMSpPPqQg9ho2lIVqZbP9+XOYhaJR\
    tN+FD2tA4VPLFGr1AkEA63bIXyg6llnKonRqUu/m0XORPk71qpC18uRJzaunlw+6bnU6uwfhmB9RhVE53G6aefiM\
    fmtP6Hxzv9guN5GjxwJBAMt87Q174IaARWzY0Hv9kMSbJp6C3dP7yRYUIimKL/X9gXan+5Tr1d59MPcSXQ4iK9Sf\
    Ur5hjBfGif9nC641L3UCQBPOrTJcBvmo2gPqeRs69Ra/ewNbzwynGbcx/wdfHjz15L/v+p3LHu4WDFyDpbNmVnZW\
    MzNbQaCT/4Su4cxo4vcCQET9PfqRFu/keiB3licWRw6Dl9dnC8DwWB3sWTeOGxQokl9W95/O/h8efsvhz9L/12vl\
    RP+LcilSZkEGL+Zl580=";

#[allow(dead_code)]
const EC: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHE4F88RfyqwewKTchee9zrro2givQPuShc/zO4Gc\
    RXShRANCAAQXrmTZzQ8I+GCcpLRap+F8NmfaFdxtQuk0XVZaYCuwYYkaRiwau8il+jNagUHp2a/kKgkkn0WNIzR+\
    UXKs+aTD";
