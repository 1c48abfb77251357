/*
 * Calibration files from users: any bytes give texts or a message, never a crash.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/text.h"
#include "engine/plan/search/calibration_input.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct calibration_input in;
    struct err err = {0};
    int rc = calibration_input_parse(&in, (const char *)data, size, "input", &err);

    CHECK((rc < 0) == (err.code < 0));
    CHECK(rc < 0 || in.n_texts > 0);
    for (int i = 0; i < in.n_texts; i++) {
        CHECK(in.texts[i].len > 0);
        CHECK(text_is_utf8(in.texts[i].text, in.texts[i].len));
    }
    calibration_input_release(&in);
    return 0;
}
