/* GPM of the fake library: "gpm 1" says that a GPU has it, "gpm.5 71.5" is metric 5. A sample remembers whose it is; what
 * is said is that of the later sample's place. Those of a MIG instance are taken of its GPU and GPU instance.
 */
#include "fake.h"

#include <stdlib.h>

typedef struct {
    int place, taken;
} Sample;

typedef struct {
    unsigned int id;
    Return result;
    double value;
    const char *names[3];
} Metric;

typedef struct {
    unsigned int version, count;
    Sample *old, *new;
    Metric metrics[];
} Request;

typedef struct {
    unsigned int version, supported;
} Support;

static int living; /* samples that were not freed, for tests that ask */

int fake_gpm_samples(void) { return __atomic_load_n(&living, __ATOMIC_SEQ_CST); }

Return nvmlGpmQueryDeviceSupport(void *device, Support *support) {
    unsigned long long found = 0;
    int gpu = gpu_of(device);
    if (support->version != 1) return ARGUMENT_VERSION_MISMATCH;
    number(gpu, "gpm", &found);
    support->supported = found != 0;
    return refusal(gpu, "gpm");
}

Return nvmlGpmSampleAlloc(Sample **sample) {
    *sample = calloc(1, sizeof **sample);
    if (!*sample) return MEMORY;
    __atomic_add_fetch(&living, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

Return nvmlGpmSampleFree(Sample *sample) {
    if (!sample) return INVALID_ARGUMENT;
    free(sample);
    __atomic_sub_fetch(&living, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

static Return take(int place, Sample *sample) {
    if (place < 0 || !sample) return place == STALE_HANDLE ? GPU_IS_LOST : INVALID_ARGUMENT;
    Return result = refusal(place, "gpm_sample");
    if (result != SUCCESS) return result;
    *sample = (Sample){place, 1};
    return SUCCESS;
}

Return nvmlGpmSampleGet(void *device, Sample *sample) { return take(gpu_of(device), sample); }

Return nvmlGpmMigSampleGet(void *device, unsigned int gpu_instance, Sample *sample) {
    int gpu = gpu_of(device);
    if (gpu < 0) return gpu == STALE_HANDLE ? GPU_IS_LOST : INVALID_ARGUMENT;
    for (int index = 1; index <= 64; index++) {
        unsigned long long found;
        int place = gpu | index << PLACE_BITS;
        if (number(place, "gpu_instance", &found) == SUCCESS && found == gpu_instance) return take(place, sample);
    }
    return INVALID_ARGUMENT;
}

Return nvmlGpmMetricsGet(Request *request) {
    char text[64];
    Sample *old = request->old, *new = request->new;
    refresh();
    if (request->version != 1) return ARGUMENT_VERSION_MISMATCH;
    if (!old || !new || old == new || !old->taken || !new->taken || old->place != new->place) return INVALID_ARGUMENT;
    Return all = refusal(new->place, "gpm_metrics");
    if (all != SUCCESS) return all;
    for (unsigned int index = 0; index < request->count; index++) {
        Metric *metric = &request->metrics[index];
        metric->result = say_numbered(new->place, GPM, metric->id, 0, text, sizeof text);
        if (metric->result == SUCCESS) metric->value = strtod(text, NULL);
    }
    return SUCCESS;
}
