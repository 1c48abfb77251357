/*
 * bench - the benches of spand-bench, one function each: arguments behind the bench's name, exit
 * code as result. A bench that is not linked in is said to be missing, so each can be built alone.
 */
#ifndef BENCH_H
#define BENCH_H

struct config;
struct config_extra;
struct err;

int bench_engine(int argc, char **argv) __attribute__((weak));
int bench_load(int argc, char **argv) __attribute__((weak));
int bench_kernels(int argc, char **argv);
int bench_tokenizer(int argc, char **argv) __attribute__((weak));
int bench_request(int argc, char **argv) __attribute__((weak));
int bench_http(int argc, char **argv) __attribute__((weak));

/*
 * The flags behind a bench's name into config and extras. 1: --help was asked for and answered,
 * behind the bench's own words; < 0: err says what is wrong. config is released then.
 */
int bench_read_flags(struct config *config, int argc, char **argv,
                     const struct config_extra *extras, int n_extras, const char *help,
                     struct err *err);

/* Sorts the n values. */
double bench_median(double *values, int n);

#endif
