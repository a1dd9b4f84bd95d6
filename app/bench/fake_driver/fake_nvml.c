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

static Return whole(int gpu, const char *key, int *out) {
    char text[64];
    Return result = say(gpu, key, text, sizeof text);
    if (result == SUCCESS) *out = (int)strtol(text, NULL, 0);
    return result;
}

static Return text_of(void *device, const char *key, char *out, unsigned int size) {
    return say(gpu_of(device), key, out, size);
}

Return nvmlInitWithFlags(unsigned int flags) {
    refresh();
    (void)flags;
    return refusal(NO_GPU, "init");
}

Return nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(Return result) {
    (void)result;
    return "an error of the fake library";
}

Return nvmlSystemGetDriverVersion(char *out, unsigned int size) { return text_of(NULL, "driver_version", out, size); }

Return nvmlSystemGetNVMLVersion(char *out, unsigned int size) { return text_of(NULL, "nvml_version", out, size); }

Return nvmlSystemGetCudaDriverVersion_v2(int *out) { return small(NULL, "cuda_version", (unsigned int *)out); }

Return nvmlDeviceGetSerial(void *device, char *out, unsigned int size) { return text_of(device, "serial", out, size); }

Return nvmlDeviceGetBoardPartNumber(void *device, char *out, unsigned int size) {
    return text_of(device, "board_part_number", out, size);
}

Return nvmlDeviceGetVbiosVersion(void *device, char *out, unsigned int size) {
    return text_of(device, "vbios_version", out, size);
}

Return nvmlDeviceGetCount_v2(unsigned int *count) { return small(NULL, "count", count); }

Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    refresh();
    *device = handle_of((int)index);
    return refusal((int)index, "handle");
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
    if (result == SUCCESS) result = number(gpu, "memory_total", &memory->total);
    if (result == SUCCESS) result = number(gpu, "memory_free", &memory->free);
    return result == SUCCESS ? number(gpu, "memory_reserved", &memory->reserved) : result;
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

Return nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *out) {
    return number(gpu_of(device), "clocks_event_reasons", out);
}

/* Drivers before 535 have only this name. */
Return nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    return number(gpu_of(device), "clocks_event_reasons_v1", out);
}

Return nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned int *out) { return small(device, "pcie_generation", out); }
Return nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned int *out) { return small(device, "pcie_width", out); }

typedef struct {
    unsigned long long total, free, used;
} OldMemory;

/* Drivers before 510 have only this one: "memory_used !13" leaves it to "memory_used_v1". */
Return nvmlDeviceGetMemoryInfo(void *device, OldMemory *memory) {
    int gpu = gpu_of(device);
    Return result = number(gpu, "memory_used_v1", &memory->used);
    if (result == SUCCESS) result = number(gpu, "memory_total_v1", &memory->total);
    return result == SUCCESS ? number(gpu, "memory_free_v1", &memory->free) : result;
}

Return nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *out) {
    (void)sensor;
    return small(device, "temperature_v1", out);
}

Return nvmlDeviceGetTemperatureThreshold(void *device, unsigned int threshold, unsigned int *out) {
    static const char *keys[] = {"threshold_shutdown", "threshold_slowdown", "threshold_memory_max", "threshold_gpu_max"};
    return threshold < 4 ? small(device, keys[threshold], out) : INVALID_ARGUMENT;
}

typedef struct {
    unsigned int version;
    int value;
} Versioned;

Return nvmlDeviceGetMarginTemperature(void *device, Versioned *margin) {
    return whole(gpu_of(device), "temperature_margin", &margin->value);
}

Return nvmlDeviceGetUnrepairableMemoryFlag_v1(void *device, Versioned *flag) {
    return whole(gpu_of(device), "memory_unrepairable", &flag->value);
}

Return nvmlDeviceGetEncoderUtilization(void *device, unsigned int *percent, unsigned int *period) {
    *period = 167000;
    return small(device, "utilization_encoder", percent);
}

Return nvmlDeviceGetDecoderUtilization(void *device, unsigned int *percent, unsigned int *period) {
    *period = 167000;
    return small(device, "utilization_decoder", percent);
}

Return nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned int *out) { return small(device, "pcie_generation_max", out); }
Return nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned int *out) { return small(device, "pcie_width_max", out); }

typedef struct {
    unsigned int version;
    unsigned char cluster[16];
    Return status;
    unsigned int clique, state, health_mask;
    unsigned char health_summary; /* version 3 */
} Fabric;

Return nvmlDeviceGetGpuFabricInfoV(void *device, Fabric *fabric) {
    int gpu = gpu_of(device), summary = 0;
    Return result = whole(gpu, "fabric_state", (int *)&fabric->state);
    unsigned long long newest = 3;
    number(gpu, "fabric_version", &newest);
    if (fabric->version != 0x02000024 && (fabric->version != 0x03000028 || newest < 3)) return ARGUMENT_VERSION_MISMATCH;
    if (result == SUCCESS) result = whole(gpu, "fabric_status", &fabric->status);
    if (result == SUCCESS) result = whole(gpu, "fabric_health_mask", (int *)&fabric->health_mask);
    if (result != SUCCESS || fabric->version == 0x02000024) return result;
    result = whole(gpu, "fabric_health", &summary);
    if (result == SUCCESS) fabric->health_summary = (unsigned char)summary;
    return result;
}

typedef struct {
    unsigned int version;
    unsigned long long aggregate_parity, aggregate_secded, aggregate_corrected;
    unsigned long long volatile_parity, volatile_secded, volatile_corrected;
    unsigned long long buckets[5];
    unsigned int threshold_exceeded;
} Sram;

Return nvmlDeviceGetSramEccErrorStatus(void *device, Sram *sram) {
    int gpu = gpu_of(device);
    if (sram->version != 0x01000068) return ARGUMENT_VERSION_MISMATCH;
    Return result = number(gpu, "sram_aggregate_parity", &sram->aggregate_parity);
    if (result == SUCCESS) result = number(gpu, "sram_aggregate_secded", &sram->aggregate_secded);
    if (result == SUCCESS) result = number(gpu, "sram_aggregate_corrected", &sram->aggregate_corrected);
    if (result == SUCCESS) result = number(gpu, "sram_volatile_parity", &sram->volatile_parity);
    if (result == SUCCESS) result = number(gpu, "sram_volatile_secded", &sram->volatile_secded);
    if (result == SUCCESS) result = number(gpu, "sram_volatile_corrected", &sram->volatile_corrected);
    return result == SUCCESS ? whole(gpu, "sram_threshold_exceeded", (int *)&sram->threshold_exceeded) : result;
}

Return nvmlDeviceGetRowRemapperHistogram(void *device, unsigned int banks[5]) {
    static const char *keys[] = {"remap_max", "remap_high", "remap_partial", "remap_low", "remap_none"};
    Return result = SUCCESS;
    for (int index = 0; index < 5 && result == SUCCESS; index++) result = small(device, keys[index], &banks[index]);
    return result;
}

Return nvmlDeviceGetRemappedRows(void *device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending,
                                 unsigned int *failed) {
    Return result = small(device, "remapped_corrected", corrected);
    if (result == SUCCESS) result = small(device, "remapped_uncorrected", uncorrected);
    if (result == SUCCESS) result = small(device, "remapped_pending", pending);
    return result == SUCCESS ? small(device, "remapped_failed", failed) : result;
}

Return nvmlDeviceGetNvLinkState(void *device, unsigned int link, unsigned int *active) {
    char text[64];
    Return result = say_numbered(gpu_of(device), FIELDS, 165, link, text, sizeof text);
    if (result == SUCCESS) *active = (unsigned int)strtoul(text, NULL, 0);
    return result;
}

typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;

Return nvmlDeviceGetPciInfo_v3(void *device, Pci *pci) {
    Return result = text_of(device, "pci", pci->bus_id, sizeof pci->bus_id);
    if (result != SUCCESS) return result;
    sscanf(pci->bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->legacy, sizeof pci->legacy, "%04x:%02x:%02x.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
    return SUCCESS;
}

typedef struct {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} Process;

/* The answer is "PID PID ..."; one that is empty cannot be written, so "0" stands for none. */
static Return processes(void *device, const char *key, unsigned int *room, Process *out) {
    char text[256], *rest = NULL;
    unsigned int found = 0;
    Return result = text_of(device, key, text, sizeof text);
    for (char *word = result == SUCCESS ? strtok_r(text, " ", &rest) : NULL; word; word = strtok_r(NULL, " ", &rest)) {
        unsigned int pid = (unsigned int)strtoul(word, NULL, 10);
        if (pid && found < *room) out[found] = (Process){pid, 1u << 30, 0xffffffff, 0xffffffff};
        found += pid != 0;
    }
    if (result == SUCCESS && found > *room) result = INSUFFICIENT_SIZE;
    *room = found;
    return result;
}

Return nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *room, Process *out) {
    return processes(device, "compute_processes", room, out);
}

/* Drivers before 510 have only this name: "compute_processes !13" leaves it to "compute_processes_v2". */
Return nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned int *room, Process *out) {
    return processes(device, "compute_processes_v2", room, out);
}

Return nvmlDeviceGetMPSComputeRunningProcesses_v3(void *device, unsigned int *room, Process *out) {
    return processes(device, "mps_processes", room, out);
}

Return nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned int *room, Process *out) {
    return processes(device, "graphics_processes", room, out);
}

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
    Return all = refusal(gpu, "fields");
    if (all != SUCCESS) return all;
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
