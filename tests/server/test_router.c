/*
 * Tests of server/router.c.
 */
#include "tests/lib/test.h"

#include "server/router.h"

#include <string.h>

START_TEST(router__finds_routes_by_method)
{
    struct route_match m = router_find("POST", "/v1/completions");

    ck_assert_ptr_nonnull(m.route);
    ck_assert_str_eq(m.route->path, "/v1/completions");
    ck_assert_ptr_nonnull(router_find("GET", "/health").route);
    ck_assert_ptr_nonnull(router_find("HEAD", "/health").route);
}
END_TEST

/* A known path under another method tells what it allows. */
START_TEST(router__tells_what_a_path_allows)
{
    static const char *const methods[] = {"GET",     "HEAD",  "PUT", "DELETE",
                                          "OPTIONS", "TRACE", "post"};

    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct route_match m = router_find(methods[i], "/v1/completions");

        ck_assert_ptr_null(m.route);
        ck_assert_str_eq(m.allow, "POST");
    }
    ck_assert_str_eq(router_find("POST", "/v1/models").allow, "GET, HEAD");
}
END_TEST

/* A path that is switched off must not show by its 405, so its gate counts for every method. */
START_TEST(router__tells_the_gate_of_a_path_for_every_method)
{
    ck_assert_int_eq(router_find("POST", "/debug/state").gate, ROUTE_IF_DEBUG);
    ck_assert_int_eq(router_find("GET", "/debug/state").gate, ROUTE_IF_DEBUG);
    ck_assert_int_eq(router_find("PUT", "/metrics").gate, ROUTE_IF_METRICS);
    ck_assert_int_eq(router_find("PUT", "/health").gate, ROUTE_OPEN);
    ck_assert_int_eq(router_find("GET", "/nope").gate, ROUTE_ALWAYS);
}
END_TEST

START_TEST(router__knows_no_other_paths)
{
    static const char *const paths[] = {
        "/x",          "",           "*",          "/v1",        "/v1/completions/", "//",
        "/v1//models", "/health%00", "/V1/models", "/v1/models/"};

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        struct route_match m = router_find("GET", paths[i]);

        ck_assert_msg(!m.route && !m.allow, "'%s' is served", paths[i]);
        ck_assert_str_eq(router_name(m.idx), "other");
    }
}
END_TEST

/* Model ids may hold slashes; the target may be in absolute form. */
START_TEST(router__passes_the_rest_of_a_path)
{
    ck_assert_str_eq(router_find("GET", "/v1/models/org/name").rest, "org/name");
    ck_assert_str_eq(router_find("GET", "http://h:1/v1/models/a%2Fb").rest, "a%2Fb");
    ck_assert_ptr_nonnull(router_find("GET", "HTTPS://h/health").route);
    ck_assert_str_eq(router_find("GET", "http://h").route->path, "/");
}
END_TEST

START_TEST(router__decodes_percent_escapes)
{
    char good[] = "a%2Fb%20c%c3%A9";
    char broken[][8] = {"%", "%1", "%zz", "a%00b", "%2"};

    ck_assert(router_percent_decode(good));
    ck_assert_str_eq(good, "a/b c\xc3\xa9");
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++)
        ck_assert(!router_percent_decode(broken[i]));
}
END_TEST

/* Metrics keep one row a route and one for everything else. */
START_TEST(router__names_every_index)
{
    for (int i = 0; i < router_count(); i++)
        ck_assert_uint_gt(strlen(router_name(i)), 0);
    ck_assert_str_eq(router_name(router_count() - 1), "other");
}
END_TEST

TEST_SUITE(router)
{
    TCase *tc = test_case(suite, "routes");

    tcase_add_test(tc, router__finds_routes_by_method);
    tcase_add_test(tc, router__tells_what_a_path_allows);
    tcase_add_test(tc, router__tells_the_gate_of_a_path_for_every_method);
    tcase_add_test(tc, router__knows_no_other_paths);
    tcase_add_test(tc, router__passes_the_rest_of_a_path);
    tcase_add_test(tc, router__decodes_percent_escapes);
    tcase_add_test(tc, router__names_every_index);
}
