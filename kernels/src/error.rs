//! What can go wrong before, during and after a launch.

/// The error of every launcher and of every move of data to or from a device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// A tensor's shape is not what the kernel takes.
    #[error("{tensor} has shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor's name in the launcher's signature.
        tensor: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What the kernel takes.
        expected: String,
    },
    /// A tensor's strides are not what the kernel takes.
    #[error("{tensor} has strides {got:?} (elements), expected {expected}")]
    Strides {
        /// The tensor's name in the launcher's signature.
        tensor: &'static str,
        /// Its strides in elements.
        got: Vec<usize>,
        /// What the kernel takes.
        expected: String,
    },
    /// A tensor's element type is not what the kernel takes.
    #[error("{tensor} holds {got}, expected {expected}")]
    DType {
        /// The tensor's name in the launcher's signature.
        tensor: &'static str,
        /// Its element type.
        got: String,
        /// What the kernel takes.
        expected: String,
    },
    /// A number is out of range.
    #[error("{name} is {got}, expected {expected}")]
    Value {
        /// The argument's name in the launcher's signature.
        name: &'static str,
        /// Its value.
        got: String,
        /// The values it may take.
        expected: String,
    },
    /// A line of a contract cannot be read: a mistake in the kernel's source.
    #[error("the contract of {kernel} has a line that cannot be read: {line}")]
    Contract {
        /// The launcher.
        kernel: &'static str,
        /// The line.
        line: String,
    },
    /// No such device, or it does not open.
    #[error("device {name}: {reason}")]
    Device {
        /// The name asked for.
        name: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// The device refused or failed a kernel; found when its output is read.
    #[error("the kernel failed on {device}: {reason}")]
    Launch {
        /// The device's name.
        device: String,
        /// What the runtime said.
        reason: String,
    },
    /// A tool that looks at compiled kernels is missing, or did not understand what it was given.
    #[error("{tool}: {reason}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What went wrong, and what to do.
        reason: String,
    },
}
