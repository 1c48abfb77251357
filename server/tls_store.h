/*
 * tls_store - the certificate that TLS clients are shown, and its key. Loop thread only.
 *
 * Both can be replaced while the daemon runs: handshakes that begin later get the new pair, and
 * established connections are not touched. Old pairs are kept to the end, since a handshake may
 * still be using one; a pair takes a few KB.
 */
#ifndef TLS_STORE_H
#define TLS_STORE_H

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>

struct err;
struct tls_pair;

struct tls_store { /* fields are private */
    struct tls_pair *newest;
};

/* TLS 1.2 and 1.3 with GnuTLS's own choice of ciphers. */
#define TLS_STORE_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

/*
 * Reads PEM files: the certificate with its chain, and its key. On failure the store keeps what it
 * had. ERR_INVALID for files that do not hold a pair, ERR_IO and ERR_NOT_FOUND for others.
 */
int tls_store_load(struct tls_store *t, const char *cert_path, const char *key_path,
                   struct err *err);
void tls_store_release(struct tls_store *t);

/* libmicrohttpd's callback has no argument of its own: this names the store that it answers from.
 */
void tls_store_use(struct tls_store *t);

/* For MHD_OPTION_HTTPS_CERT_CALLBACK. */
int tls_store_retrieve(gnutls_session_t session, const gnutls_datum_t *req_ca_dn, int n_req_ca_dn,
                       const gnutls_pk_algorithm_t *algos, int n_algos, gnutls_pcert_st **certs,
                       unsigned *n_certs, gnutls_privkey_t *key);

#endif
