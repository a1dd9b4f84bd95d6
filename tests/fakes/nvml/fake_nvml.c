/* A small libnvidia-ml.so.1: the real pynvml loads it and cannot tell. What it says is in a text file that may change
 * while a process has it loaded (see fake_answers.c).
 */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Return small(void *device, const char *key, unsigned int *out) {
    unsigned long long wide = 0;
    Return result = number(gpu_of(device), key, &wide);
    if (result == SUCCESS) *out = (unsigned int)wide;
    return result;
}

static Return text_of(void *device, const char *key, char *out, unsigned int size) {
    return say(gpu_of(device), key, out, size);
}

Return nvmlInitWithFlags(unsigned int flags) {
    unsigned long long ignored;
    refresh();
    Return result = number(NO_GPU, "init", &ignored);
    (void)flags;
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

Return nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(Return result) {
    (void)result;
    return "an error of the fake library";
}

Return nvmlSystemGetDriverVersion(char *out, unsigned int size) { return text_of(NULL, "driver_version", out, size); }

Return nvmlDeviceGetCount_v2(unsigned int *count) { return small(NULL, "count", count); }

Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    unsigned long long ignored;
    refresh();
    Return result = number((int)index, "handle", &ignored);
    *device = handle_of((int)index);
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

Return nvmlDeviceGetUUID(void *device, char *out, unsigned int size) { return text_of(device, "uuid", out, size); }
Return nvmlDeviceGetName(void *device, char *out, unsigned int size) { return text_of(device, "name", out, size); }

Return nvmlDeviceGetUtilizationRates(void *device, unsigned int rates[2]) {
    Return result = small(device, "utilization_gpu", &rates[0]);
    return result == SUCCESS ? small(device, "utilization_memory", &rates[1]) : result;
}

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} Memory;

Return nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    int gpu = gpu_of(device);
    Return result = number(gpu, "memory_used", &memory->used);
    if (memory->version != 0x02000028) return INVALID_ARGUMENT;
    return result == SUCCESS ? number(gpu, "memory_total", &memory->total) : result;
}

typedef struct {
    unsigned int version, sensor;
    int celsius;
} Temperature;

Return nvmlDeviceGetTemperatureV(void *device, Temperature *temperature) {
    return small(device, "temperature", (unsigned int *)&temperature->celsius);
}

Return nvmlDeviceGetPowerUsage(void *device, unsigned int *out) { return small(device, "power_usage", out); }
Return nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned int *out) { return small(device, "power_limit", out); }

Return nvmlDeviceGetClockInfo(void *device, int type, unsigned int *out) {
    return small(device, type == 1 ? "clock_sm" : type == 2 ? "clock_memory" : "clock_other", out);
}

Return nvmlDeviceGetPerformanceState(void *device, int *out) {
    return small(device, "performance_state", (unsigned int *)out);
}

/* Only the older name is here: pynvml says "function not found" for the newer one, as with a driver before 535. */
Return nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    return number(gpu_of(device), "clocks_event_reasons", out);
}

Return nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned int *out) { return small(device, "pcie_generation", out); }
Return nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned int *out) { return small(device, "pcie_width", out); }

typedef struct {
    unsigned int id, scope;
    long long timestamp, latency;
    int type;
    Return result;
    union {
        double d;
        unsigned int u;
        int i;
        unsigned long long ull;
    } value;
} FieldValue;

Return nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    int gpu = gpu_of(device);
    unsigned long long ignored;
    Return all = number(gpu, "fields", &ignored);
    if (all != SUCCESS && all != NOT_SUPPORTED) return all;
    for (int index = 0; index < count; index++) {
        char text[256];
        values[index].result = say_numbered(gpu, FIELDS, values[index].id, values[index].scope, text, sizeof text);
        if (values[index].result != SUCCESS) continue;
        if (strchr(text, 'u')) {
            values[index].type = TYPE_UNSIGNED_INT;
            values[index].value.u = (unsigned int)strtoul(text, NULL, 0);
        } else if (strchr(text, 's')) {
            values[index].type = TYPE_SIGNED_INT;
            values[index].value.i = (int)strtol(text, NULL, 0);
        } else if (strchr(text, '.') || strstr(text, "nan")) {
            values[index].type = TYPE_DOUBLE;
            values[index].value.d = strtod(text, NULL);
        } else {
            values[index].type = TYPE_UNSIGNED_LONG_LONG;
            values[index].value.ull = strtoull(text, NULL, 0);
        }
    }
    return SUCCESS;
}
