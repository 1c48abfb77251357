/*
 * cpu_memory - blocks for weights, KV and activations.
 *
 * Large blocks ask for 2 MiB pages: streaming weights through 4 KiB pages loses a tenth of the
 * bandwidth to page walks on some machines.
 */
#include "engine/cpu/cpu_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

void *cpu_memory_new(size_t bytes)
{
    size_t align = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
    void *ptr;

    /* Overcommit would grant what can never be touched. */
    if (bytes / (size_t)sysconf(_SC_PAGESIZE) > (size_t)sysconf(_SC_PHYS_PAGES))
        return NULL;
    bytes = (bytes + align - 1) / align * align;
    ptr = aligned_alloc(align, bytes ? bytes : align);
    if (ptr && align == HUGE_PAGE)
        (void)madvise(ptr, bytes, MADV_HUGEPAGE); /* a wish */
    return ptr;
}

void cpu_memory_free(void *ptr)
{
    free(ptr);
}

/* The number behind a key of /proc/meminfo in bytes, or 0. */
static size_t meminfo_bytes(const char *key)
{
    char line[128];
    size_t kib = 0, len = strlen(key);
    FILE *f = fopen("/proc/meminfo", "r");

    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, len) == 0) {
            kib = strtoull(line + len, NULL, 10);
            break;
        }
    }
    fclose(f);
    return kib << 10;
}

/* A file that holds one number; false for "max" and for no file. */
static bool read_number(const char *path, size_t *out)
{
    unsigned long long n;
    bool ok;
    FILE *f = fopen(path, "r");

    if (!f)
        return false;
    ok = fscanf(f, "%llu", &n) == 1;
    fclose(f);
    *out = ok ? (size_t)n : 0;
    return ok;
}

size_t cpu_memory_available(void)
{
    size_t available = meminfo_bytes("MemAvailable:"), limit, used;

    if (read_number("/sys/fs/cgroup/memory.max", &limit) &&
        read_number("/sys/fs/cgroup/memory.current", &used)) {
        size_t left = limit > used ? limit - used : 0;

        if (left < available)
            available = left;
    }
    return available;
}
