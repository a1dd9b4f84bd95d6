/* MIG of the fake library. "mig_mode 1" turns it on for a GPU; an instance is there if "GPU:INDEX uuid" is. It says
 * "gpu_instance", "compute_instance", "name", "memory_used" and so on of itself.
 */
#include "fake.h"

enum { INSTANCES_MAX = 7 };

static Return small(int place, const char *key, unsigned int *out) {
    unsigned long long wide = 0;
    Return result = number(place, key, &wide);
    if (result == SUCCESS) *out = (unsigned int)wide;
    return result;
}

Return nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    Return result = small(gpu_of(device), "mig_mode", current);
    *pending = *current;
    return result;
}

Return nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *count) {
    int gpu = gpu_of(device);
    if (small(gpu, "mig_count_max", count) != SUCCESS) *count = INSTANCES_MAX;
    return refusal(gpu, "mig_count_max");
}

Return nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned int index, void **instance) {
    char ignored[128];
    int gpu = gpu_of(device);
    if (gpu < 0) return gpu == STALE_HANDLE ? GPU_IS_LOST : INVALID_ARGUMENT;
    int place = gpu | (int)(index + 1) << PLACE_BITS;
    Return result = say(place, "uuid", ignored, sizeof ignored);
    *instance = handle_of(place);
    return result == NOT_SUPPORTED ? NOT_FOUND : result;
}

Return nvmlDeviceGetGpuInstanceId(void *device, unsigned int *out) { return small(gpu_of(device), "gpu_instance", out); }

Return nvmlDeviceGetComputeInstanceId(void *device, unsigned int *out) {
    return small(gpu_of(device), "compute_instance", out);
}

Return nvmlDeviceIsMigDeviceHandle(void *device, unsigned int *is) {
    int place = gpu_of(device);
    *is = place >= 0 && place >> PLACE_BITS != 0;
    return place < 0 ? INVALID_ARGUMENT : SUCCESS;
}

Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **device) {
    int place = gpu_of(instance);
    if (place < 0) return INVALID_ARGUMENT;
    *device = handle_of(place & PLACE_GPU_MASK);
    return SUCCESS;
}

typedef struct {
    unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} Attributes;

Return nvmlDeviceGetAttributes_v2(void *device, Attributes *out) {
    int place = gpu_of(device);
    Return result = number(place, "memory_mib", &out->memory_mib);
    if (result == SUCCESS) result = small(place, "gpu_slices", &out->gpu_slices);
    if (result == SUCCESS) result = small(place, "compute_slices", &out->compute_slices);
    return result == SUCCESS ? small(place, "multiprocessors", &out->multiprocessors) : result;
}
