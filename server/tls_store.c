/*
 * tls_store - PEM files to GnuTLS objects.
 */
#include "server/tls_store.h"

#include "base/err.h"
#include "base/file_map.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CHAIN     16
#define MAX_PEM_BYTES (1 << 20)

struct tls_pair {
    struct tls_pair *older;
    gnutls_pcert_st certs[MAX_CHAIN];
    unsigned n_certs;
    gnutls_privkey_t key;
};

static struct tls_store *in_use;

static void pair_free(struct tls_pair *p)
{
    if (!p)
        return;
    for (unsigned i = 0; i < p->n_certs; i++)
        gnutls_pcert_deinit(&p->certs[i]);
    if (p->key)
        gnutls_privkey_deinit(p->key);
    free(p);
}

static int refuse(struct err *err, const char *path, const char *what, int rc)
{
    return err_set(err, ERR_INVALID, "%s: %s: %s", path, what, gnutls_strerror(rc));
}

static int read_pem(const char *path, gnutls_datum_t *out, struct err *err)
{
    size_t len = 0;
    char *text = NULL;
    int rc = file_read_text(&text, &len, path, MAX_PEM_BYTES, err);

    out->data = (unsigned char *)text;
    out->size = (unsigned)len;
    return rc;
}

/* A certificate of another key would fail in every handshake; better to say so now. */
static int check_match(struct tls_pair *p, const char *cert_path, const char *key_path,
                       struct err *err)
{
    unsigned char a[64], b[64];
    size_t a_len = sizeof(a), b_len = sizeof(b);
    gnutls_pubkey_t pub;
    bool same;

    if (gnutls_pubkey_init(&pub) < 0)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", key_path);
    same = gnutls_pubkey_import_privkey(pub, p->key, 0, 0) >= 0 &&
           gnutls_pubkey_get_key_id(pub, GNUTLS_KEYID_USE_SHA256, a, &a_len) >= 0 &&
           gnutls_pubkey_get_key_id(p->certs[0].pubkey, GNUTLS_KEYID_USE_SHA256, b, &b_len) >= 0 &&
           a_len == b_len && !memcmp(a, b, a_len);
    gnutls_pubkey_deinit(pub);
    if (same)
        return 0;
    return err_set(err, ERR_INVALID, "%s is not the key of the certificate in %s", key_path,
                   cert_path);
}

int tls_store_load(struct tls_store *t, const char *cert_path, const char *key_path,
                   struct err *err)
{
    gnutls_datum_t cert = {0}, key = {0};
    struct tls_pair *p = calloc(1, sizeof(*p));
    unsigned n = MAX_CHAIN;
    int rc = p ? read_pem(cert_path, &cert, err)
               : err_set(err, ERR_NO_ROOM, "%s: out of memory", cert_path);

    if (rc == 0)
        rc = read_pem(key_path, &key, err);
    if (rc < 0)
        goto out;
    rc = gnutls_pcert_list_import_x509_raw(p->certs, &n, &cert, GNUTLS_X509_FMT_PEM, 0);
    if (rc < 0) {
        rc = refuse(err, cert_path, "no certificate in PEM form", rc);
        goto out;
    }
    p->n_certs = n;
    rc = gnutls_privkey_init(&p->key);
    if (rc >= 0)
        rc = gnutls_privkey_import_x509_raw(p->key, &key, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (rc < 0) {
        rc = refuse(err, key_path, "no private key in PEM form", rc);
        goto out;
    }
    rc = check_match(p, cert_path, key_path, err);
    if (rc < 0)
        goto out;
    p->older = t->newest;
    t->newest = p;
    p = NULL;
out:
    if (key.data)
        gnutls_memset(key.data, 0, key.size);
    free(cert.data);
    free(key.data);
    pair_free(p);
    return rc;
}

void tls_store_release(struct tls_store *t)
{
    while (t->newest) {
        struct tls_pair *p = t->newest;

        t->newest = p->older;
        pair_free(p);
    }
    if (in_use == t)
        in_use = NULL;
}

void tls_store_use(struct tls_store *t)
{
    in_use = t;
}

int tls_store_retrieve(gnutls_session_t session, const gnutls_datum_t *req_ca_dn, int n_req_ca_dn,
                       const gnutls_pk_algorithm_t *algos, int n_algos, gnutls_pcert_st **certs,
                       unsigned *n_certs, gnutls_privkey_t *key)
{
    (void)session;
    (void)req_ca_dn;
    (void)n_req_ca_dn;
    (void)algos;
    (void)n_algos;
    if (!in_use || !in_use->newest)
        return -1;
    *certs = in_use->newest->certs;
    *n_certs = in_use->newest->n_certs;
    *key = in_use->newest->key;
    return 0;
}
