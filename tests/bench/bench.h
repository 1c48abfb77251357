/*
 * bench - the benches of spand-bench, one function each: arguments behind the bench's name, exit
 * code as result. A bench that is not linked in is said to be missing, so each can be built alone.
 */
#ifndef BENCH_H
#define BENCH_H

int bench_engine(int argc, char **argv) __attribute__((weak));
int bench_load(int argc, char **argv) __attribute__((weak));
int bench_kernels(int argc, char **argv);
int bench_tokenizer(int argc, char **argv) __attribute__((weak));
int bench_request(int argc, char **argv) __attribute__((weak));
int bench_http(int argc, char **argv) __attribute__((weak));

/* Sorts the n values. */
double bench_median(double *values, int n);

#endif
