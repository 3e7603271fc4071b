/* The same without an operating system or C library: the debugger's (QEMU's) semihosting reads the file "pixels" and
   writes "output". See Arm's "Semihosting for AArch32 and AArch64": operation in r0, its arguments' address in r1. */
#include "model.h"

enum { OPEN = 1, WRITE = 5, READ = 6, EXIT = 0x18, FINISHED = 0x20026 };

static uint8_t input[MOBILENET_INPUT_BYTES];
static float output[MOBILENET_OUTPUT_FLOATS];
static _Alignas(MOBILENET_SCRATCH_ALIGNMENT) unsigned char scratch[MOBILENET_SCRATCH_BYTES];
#ifdef MOBILENET_WEIGHTS_BYTES
static _Alignas(MOBILENET_WEIGHTS_ALIGNMENT) unsigned char weights[MOBILENET_WEIGHTS_BYTES];
#endif

static int host(int operation, const void *arguments) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void transfer(int operation, const char *name, unsigned length, int mode, void *data, unsigned size) {
    const unsigned place[] = {(unsigned)name, mode, length};
    const unsigned block[] = {host(OPEN, place), (unsigned)data, size};
    host(operation, block);
}

void reset(void) {
    *(volatile unsigned *)0xE000ED88 |= 0xF << 20; /* the floating-point unit, on: CPACR */
    __asm__ volatile("dsb\n isb");
    for (unsigned i = 0; i < sizeof scratch; i++) scratch[i] = 255; /* NaN */
    transfer(READ, "pixels", 6, 1, input, sizeof input);
#ifdef MOBILENET_WEIGHTS_BYTES
    transfer(READ, "weights", 7, 1, weights, sizeof weights);
    mobilenet_run(input, output, scratch, weights);
#else
    mobilenet_run(input, output, scratch);
#endif
    transfer(WRITE, "output", 6, 5, output, sizeof output);
    host(EXIT, (const void *)FINISHED);
    for (;;) {}
}

__attribute__((used, section(".vectors"))) static const void *const vectors[] = {(void *)0x20400000, (void *)reset};
